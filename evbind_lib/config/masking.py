"""What is never shown or stored: passwords, tokens and keys, and the folders that data lie in; one way for every place."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"
SAMPLE = "evbind_lib/data/sample/"  # a folder that everybody has
# Fields of data that name a file or a folder.
FILES = ("posts", "annotations", "criteria", "pairs", "claims", "corpus", "test")
_secret = r"(?i:password|passwd|passphrase|pwd|secret|token|credentials?|(?:api|access|account|private|secret)_?key)"
_data_file = rf"\bdata\.(?:{'|'.join(FILES)})"
_secret_name, _file_name = re.compile(f"{_secret}$"), re.compile(f"{_data_file}$")
_figure = re.compile(r"\.(image/[\w+-]+|application/vnd\.plotly\.v1\+json)$")  # long, and without parameters
_override = re.compile(r"[+~]*([\w.@/]+)=(.+)")
# In a text, `what` has to go. Of an address it goes to the last @: one may be in the password. A path has one slash of it.
_url = re.compile(r"\b(?P<scheme>[a-zA-Z][\w+.-]{0,30}://?)(?!/)(?P<user>[^\s'\"<>:@]*)(?P<what>[^\s'\"<>]*)@")
_between = r"\\*['\"]?(?:\s*:\s*[\w.\[\] |]+?)?\s*[:=]\s*"  # a name and its value, in Python, JSON or JSON within JSON
_quoted = re.compile(rf"{_secret}{_between}(?P<quote>\\*['\"])(?P<what>(?:\\.|[^\\\n])+?)(?P=quote)")
_bare = re.compile(rf"{_secret}(?:=|: )(?!(?i:none|null|true|false)\b)(?P<what>[^\s&,;:'\"\\\])}}<>]+)")
_path = r"[/~][^'\",:\]<>\n]*[/\\]|[^\s'\",\]<>]*[/\\]"
_folder = re.compile(rf"{_data_file}{_between}\\*['\"]?(?!{SAMPLE})(?P<what>{_path})")
_literal = re.compile(r"(\"\"\"|'''|\"|')((?:\\.|(?!\1).)*)\1", re.DOTALL)
_databases = ("postgres", "mysql", "mariadb", "mssql", "oracle")  # of any other server the user may be a token


def masked(value: Any, name: str = "") -> Any:
    """Value of the parameter of this name, an override, a message or anything nested, as it may be shown and stored."""
    return _walk(value, _Mask(), name)


def is_secret(name: str) -> bool:
    """Whether a parameter of this name holds a password, a token or a key."""
    return bool(_secret_name.search(name))


def masked_notebook(notebook: Any) -> Any:
    """Copy of a notebook as it may be stored: what its parameters and sources show to be secret goes from its outputs too."""
    mask = _Mask()
    copy = _walk(notebook, mask)
    known = sorted((text for text in mask.known if len(text) > 3), key=len, reverse=True)
    ends = [re.escape(text) + ("" if text.endswith("/") else r"(?!\w)") for text in known]
    again = re.compile(rf"(?<!\w)(?:{'|'.join(ends)})" if known else "(?!)")
    return _walk(copy, lambda each, _: again.sub(lambda it: mask.known[it[0]], each) if isinstance(each, str) else each)


def _walk(value: Any, change: Callable[[Any, str], Any], name: str = "") -> Any:
    if _figure.search(name):
        return value
    if isinstance(value, Mapping):
        return type(value)({key: _walk(each, change, f"{name}.{key}") for key, each in value.items()})  # type: ignore[call-arg]
    if isinstance(value, list | tuple):
        return type(value)([_walk(each, change, name) for each in value])
    return change(value, name)


class _Mask:
    """Masks texts, and remembers what it masked and what stands there now."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def __call__(self, value: Any, name: str) -> Any:
        if is_secret(name) and str(value).lower() not in ("", "none", "null", "true", "false"):
            return self.instead(str(value))
        if not isinstance(value, str):
            return value
        if name.endswith(".source"):
            return self.code(value)
        if _file_name.search(name) and not value.startswith(SAMPLE):
            folder, slash, file = value.rstrip("/").rpartition("/")
            return self.instead(folder + slash, "") + file
        if override := _override.fullmatch(value):
            key, given = override.groups()
            if (is_secret(key) and not given.startswith(MASK)) or _file_name.search(key):  # else a message about one
                return value.removesuffix(given) + self(given.strip("'\""), key)
        return self.within(_bare, self.code(value))

    def code(self, text: str) -> str:
        """Mask within Python, where a name that is assigned without quotes is no secret."""
        text = _literal.sub(lambda found: found[1] + self.within(_bare, found[2]) + found[1], text)
        text = self.within(_folder, self.within(_quoted, text), "")
        return _url.sub(self.address, text)

    def within(self, pattern: re.Pattern[str], text: str, to: str = MASK) -> str:
        return pattern.sub(lambda it: self.instead(it["what"], to).join(it[0].rpartition(it["what"])[::2]), text)

    def address(self, found: re.Match[str]) -> str:
        scheme, user, rest = found["scheme"], found["user"], found["what"]
        if not rest.startswith(":") and "/" in user + rest:  # a path with an @ in it
            return found[0]
        self.instead(rest[1:])
        shown = f"{user}{rest and f':{MASK}'}" if scheme.startswith(_databases) else self.instead(user)
        return f"{scheme}{shown}@"

    def instead(self, text: str, to: str = MASK) -> str:
        """Remember a text that is masked; what stands there instead."""
        if text and text != MASK and (to or text.startswith(("/", "~"))):
            self.known |= {text: to, unquote(text): to}
        return to
