"""A registry of losses, metrics or data formats: entries by name, usable from YAML and extended by plain assignment."""

from typing import TypeVar

from evbind_lib.errors import ParamsError, did_you_mean

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """A dict in which an unknown name is refused: ``key`` is the parameter that holds a name, ``what`` says what an entry is."""

    def __init__(self, key: str, what: str, /, **built_in: Entry) -> None:
        super().__init__(built_in)
        self.key, self.what, self.built_in = key, what, built_in

    def __missing__(self, name: str) -> Entry:
        raise ParamsError(f"{self.key}={name}: there is no {self.what} of that name{did_you_mean(str(name), self)}")

    def additions(self) -> dict[str, Entry]:
        """Entries that are not built in, or replace one that is: they travel to workers and enter digests."""
        return {name: entry for name, entry in self.items() if self.built_in.get(name) is not entry}
