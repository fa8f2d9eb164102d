"""What a profile has measured so far, in a file that an interrupted one goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import read_json
from ..errors import InputError

FILE_FORMAT = "sana-streaming-profile"
FILE_VERSION = 1


class Journal:
    """Measured values by section and name, on disk after each one where there is a path.

    ``identity`` says what they were measured on; a file of another identity is refused, never mixed in.
    """

    def __init__(self, identity: Mapping[str, Any], path: Path | None = None) -> None:
        self.identity = json.loads(json.dumps(identity))
        self.path = path
        self.sections: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, path: Path | None, identity: Mapping[str, Any]) -> Journal:
        """The file to go on with, or a new one. InputError for a file that is none, or of another identity."""
        journal = cls(identity, path)
        if path is None or not path.exists():
            return journal
        kept = cls.read(path)
        for name, value in journal.identity.items():
            if kept.identity.get(name) != value:
                raise InputError(
                    f"{path} was measured with {name} {kept.identity.get(name)}, this profile has {value}; "
                    "name another journal, or remove that one"
                )
        journal.sections = kept.sections
        return journal

    @classmethod
    def read(cls, path: Path) -> Journal:
        """A journal whatever its identity; InputError for a file that is none."""
        values = read_json(path)
        if (values.get("format"), values.get("version")) != (FILE_FORMAT, FILE_VERSION):
            raise InputError(f"{path} is no profile of version {FILE_VERSION}; name one that precision profile wrote")
        journal = cls(values["identity"], path)
        journal.sections = values["sections"]
        return journal

    def section(self, name: str) -> dict[str, Any]:
        return self.sections.setdefault(name, {})

    def value(self, section: str, name: str, measure: Callable[[], Any]) -> Any:
        """The value of that name, measured if it is not known; any JSON."""
        known = self.section(section)
        if name not in known:
            known[name] = json.loads(json.dumps(measure()))
            self.save()
        return known[name]

    def save(self) -> None:
        """Writes the file, which is never half written."""
        if self.path is None:
            return
        values = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "identity": self.identity,
            "sections": self.sections,
        }
        partial = self.path.with_name(self.path.name + ".part")
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8", newline="\n")
        partial.replace(self.path)
