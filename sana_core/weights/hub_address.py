"""The grammar of ``hf://`` addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

SCHEME = "hf://"
DEFAULT_REVISION = "main"


def path_or_address(text: str) -> Path | str:
    """A path argument of the command line as it is to be kept: an ``hf://`` address would lose a slash as a Path."""
    return text if text.startswith(SCHEME) else Path(text)


@dataclass(frozen=True)
class HubAddress:
    """``hf://owner/repo[@revision]/path``; an empty path is the repository's root, an empty revision its main branch."""

    repo: str
    path: str = ""
    revision: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"/{self.path}" if self.path else "")

    def at(self, path: str) -> HubAddress:
        return HubAddress(self.repo, path, self.revision)


def parse_uri(uri: str) -> HubAddress | None:
    """The address that ``uri`` is; None for a local path, which whatever exists under that very name is.

    The release's grammar (docs/model.md) with an optional ``@revision`` and no trailing slash. Raises InputError for an
    address without owner or repository, with an empty revision or with a path that is absolute or leaves the repository.
    """
    if not uri.startswith(SCHEME) or Path(uri).exists():
        return None
    parts = uri[len(SCHEME) :].removesuffix("/").split("/")
    repo, at, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    if not parts[0] or not repo or (at and not revision):
        raise InputError(f"{uri} is not an address; write hf://owner/repo/path or hf://owner/repo@revision/path")
    if any(part in ("", ".", "..") or "\\" in part for part in (parts[0], repo, *parts[2:])) or revision in (".", ".."):
        raise InputError(f"{uri} has a path that leaves the repository or is absolute; name a file or folder inside it")
    return HubAddress(f"{parts[0]}/{repo}", "/".join(parts[2:]), revision)
