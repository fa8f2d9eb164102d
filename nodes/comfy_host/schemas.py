"""What nodes say of themselves, to any version of ComfyUI."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

CATEGORY = "SANA-Streaming"
# What a schema lists under ``hidden`` for a node that writes on itself.
NODE_ID = io.Hidden.unique_id


def schema(**fields: Any) -> io.Schema:
    """io.Schema without the keywords that an older ComfyUI does not know."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def widget(kind: Any, name: str, **fields: Any) -> Any:
    """``kind.Input`` without the keywords that an older ComfyUI does not know."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(name, **{key: value for key, value in fields.items() if key in known})


def answer(check: Callable[[], object]) -> bool | str:
    """What validate_inputs returns: True, or the sentence of the ValueError that ``check`` raises."""
    try:
        check()
    except ValueError as error:
        return str(error)
    return True
