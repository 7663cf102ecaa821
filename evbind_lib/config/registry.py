"""A registry of losses, metrics or data formats: entries by name, usable from YAML and extended by plain assignment."""

from __future__ import annotations

from typing import TypeVar

from evbind_lib.errors import ParamsError, did_you_mean

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """A dict in which an unknown name is refused: ``key`` is the parameter that holds a name, ``what`` says what an entry is."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__()
        self.key, self.what = key, what
        self.built_in: dict[str, Entry] = {}

    def __missing__(self, name: str) -> Entry:
        raise ParamsError(f"{self.key}={name}: there is no {self.what} of that name{did_you_mean(str(name), self)}")

    def seal(self) -> None:
        """Mark what stands here now as built in."""
        self.built_in = dict(self)

    def additions(self) -> dict[str, Entry]:
        """Entries that are not built in, or replace one that is: they travel to workers and enter digests."""
        return {name: entry for name, entry in self.items() if self.built_in.get(name) is not entry}
