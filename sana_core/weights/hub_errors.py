"""What goes wrong between this machine and the hub, in one line each."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, cast

from ..errors import InputError
from .hub_address import DEFAULT_REVISION, HubAddress


class UnreachableError(InputError):
    """The hub gave no answer, so that what is cached may be used."""


def no_space(address: HubAddress, numbers: str) -> str:
    return f"{address}: no space left; it needs{numbers}: free some, or choose another disk with --to or HF_HOME"


def not_a_hub(address: HubAddress) -> str:
    from huggingface_hub import constants

    return f"{address}: {constants.ENDPOINT} does not answer as a hub does; check HF_ENDPOINT, proxy and network log-in"


@contextlib.contextmanager
def one_line_errors(address: HubAddress) -> Iterator[None]:
    """What the hub's library raises, as InputError."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base of whatever the HTTP library in use raises: it is another one in each major version.
    transport: type[Exception] = cast(Any, HfHubHTTPError.__bases__[0])
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, transport) as error:
        raise _explained(error, address) from error


def _explained(error: BaseException, address: HubAddress) -> InputError:
    from huggingface_hub import constants, errors

    # Where the library tells that it found no other way, the reason is the cause.
    if isinstance(error, (errors.LocalEntryNotFoundError, ValueError)) and error.__cause__ is not None:
        error = error.__cause__
    log_in = (
        f"open {constants.ENDPOINT}/{address.repo}, accept its licence if it has one, and log in: run hf auth login, "
        "or set HF_TOKEN"
    )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{address}: the repository is gated; {log_in}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"{address}: there is no such repository for you to see; check its name, or {log_in}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{address}: there is no revision {address.revision or DEFAULT_REVISION!r}; leave out @revision"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(f"{address}: there is no such file in the repository; check the path")
    if status in (401, 403):
        return InputError(f"{address}: the hub refuses (HTTP {status}); {log_in}")
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{address}: {address.repo} cannot be a repository; write hf://owner/repo/path")
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return InputError(no_space(address, " more than the disk has"))
    if isinstance(error, OSError) and error.filename is not None:
        return InputError(f"{address}: cannot write {error.filename} ({error.strerror}); choose another folder")
    if isinstance(error, ValueError):
        return InputError(not_a_hub(address))
    reason = f"HTTP {status}" if status else (str(error).splitlines() or [type(error).__name__])[0]
    return UnreachableError(
        f"{address}: the connection to {constants.ENDPOINT} failed or broke off ({reason}); check the network "
        "and HF_ENDPOINT and run it again, files that are whole are kept; or fetch the files elsewhere and give their paths"
    )
