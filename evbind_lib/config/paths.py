"""Where files of the user and of the project lie; files written whole."""

import errno
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

PACKAGE = Path(__file__).resolve().parent.parent
# The disk is full, a quota or a limit is reached, or it is gone.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def project_folder() -> Path:
    """Folder in which params/ and notebooks/ lie: the checkout, or the package itself where it was installed from a wheel."""
    return PACKAGE if (PACKAGE / "params").is_dir() else PACKAGE.parent


def workspace() -> Path:
    """Folder that all state goes to: ``EVBIND_WORKSPACE``, else the checkout, else (installed without one) the current folder."""
    chosen = os.environ.get("EVBIND_WORKSPACE")
    if chosen:
        return Path(os.path.expanduser(chosen)).resolve()
    return Path.cwd() if project_folder() == PACKAGE else project_folder()


def resolve_path(path: str) -> Path:
    """Absolute path of an input file: where it is, seen from the current folder, the workspace or beside the library."""
    given = Path(os.path.expanduser(path))
    places = [Path.cwd() / given, workspace() / given, PACKAGE.parent / given]
    # Unlike Path.exists, os.path.exists has an answer for a name that no file can have.
    return next((place.resolve() for place in places if os.path.exists(place)), places[0])


def portable_path(path: str) -> str:
    """A path as it was typed where it is found from any current folder, else absolute."""
    found, places = resolve_path(path), (workspace(), PACKAGE.parent)
    elsewhere = next((place / path for place in places if os.path.exists(place / path)), None)
    return path if (elsewhere and elsewhere.resolve() == found) or not os.path.exists(found) else str(found)


def resolve_sqlite(url: str) -> str:
    """Make the file of an SQLite address absolute, in the workspace; other addresses are left as they are."""
    match = re.fullmatch(r"sqlite:///(?!/)(.+)", url)
    return f"sqlite:///{Path(in_address(workspace())) / os.path.expanduser(match[1])}" if match else url


def in_address(path: Path) -> str:
    """A path as it stands in the address of an SQLite file."""
    return str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_file(url: str) -> Path | None:
    """File of an SQLite address that `resolve_sqlite` made absolute; None for any other database."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", url)
    return Path(unquote(match[1])) if match and not match[1].startswith(("file:", ":memory:")) else None


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file so that nobody ever reads half of it; folders are made, a link is followed, the mode of a file stays."""
    file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{uuid4().hex[:8]}.part")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        if file.exists():
            shutil.copymode(file, partial)
        partial.replace(file)
    except OSError as error:
        error.filename = str(file)  # a full disk has none, and nobody knows the partial file
        raise
    finally:
        partial.unlink(missing_ok=True)
