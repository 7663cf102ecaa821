"""Optuna's storages by their address: SQLite for one machine, PostgreSQL for many, a gRPC proxy for workers without database.

Imports `errors`, `params` and `processes`; `studies` and `claims` import it.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.exceptions import ExperimentalWarning

from evbind_lib.config.compose import resolve_sqlite
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.errors import SearchError

# Seconds. A worker of another host that has given no sign of life for this long is taken for dead; a process of this
# host is looked for instead, which needs no waiting.
HEARTBEAT, GRACE = 30, 150
PROXY_WAITS = 10  # seconds for a gRPC proxy to answer


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Open a storage, and make its tables where there are none.

    Parameters
    ----------
    url : str
        ``hpo.study.storage``: ``sqlite:///FILE``, ``postgresql://USER@HOST/NAME`` or ``grpc://HOST:PORT``.

    Returns
    -------
    optuna.storages.BaseStorage

    Raises
    ------
    SearchError
        When it cannot be opened.
    """
    resolved = resolve_sqlite(url)
    try:
        if resolved.startswith("grpc://"):
            return _open_proxy(resolved)
        if "://" not in resolved:
            raise ValueError("it is not an address such as sqlite:///optuna.db")
        if resolved.startswith("sqlite:///"):
            Path(resolved.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return _open_database(resolved)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        if "psycopg" in reason and isinstance(error, ImportError):
            reason = "the package psycopg is missing: pip install -e '.[postgres]'"
        raise SearchError(
            f"hpo.study.storage={without_password(url)}: the storage cannot be opened ({reason}); give one that can, for "
            "example sqlite:///optuna.db."
        ) from None


def _open_database(resolved: str) -> optuna.storages.RDBStorage:
    if resolved.startswith("sqlite"):
        # SQLite's own five seconds are short for a busy disk.
        options: dict[str, Any] = {"engine_kwargs": {"connect_args": {"timeout": 60}}}
    else:
        options = {
            "engine_kwargs": {"pool_pre_ping": True},
            "heartbeat_interval": HEARTBEAT,
            "grace_period": GRACE,
        }
    for _ in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            try:
                return optuna.storages.RDBStorage(with_driver(resolved), **options)
            except sqlalchemy.exc.DBAPIError as error:
                if not any(word in str(error).lower() for word in ("unique", "exists")):
                    raise
        time.sleep(0.2 + 0.3 * random.random())  # another process was making the same tables at this moment
    return optuna.storages.RDBStorage(with_driver(resolved), **options)


def _open_proxy(url: str) -> optuna.storages.BaseStorage:
    host, _, port = url.removeprefix("grpc://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is not of the form grpc://HOST:PORT")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    except ImportError:
        raise ValueError("the package grpcio is missing: pip install -e '.[grpc]'") from None
    try:
        proxy.wait_server_ready(timeout=PROXY_WAITS)
    except Exception:
        raise ValueError(f"no proxy answers there in {PROXY_WAITS} seconds") from None
    return proxy


def with_driver(url: str) -> str:
    """Name the driver that the extra ``postgres`` installs, where an address of PostgreSQL names none."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


def without_password(url: str) -> str:
    """An address as it may be shown."""
    head, at, tail = url.rpartition("@")
    scheme, colon, user = head.partition("://")
    return f"{scheme}{colon}{user.partition(':')[0]}@{tail}" if at else url


def check_storage(url: str) -> None:
    """Find out whether studies can be kept there, without making anything.

    Parameters
    ----------
    url : str
        ``hpo.study.storage``.

    Raises
    ------
    SearchError
        When they cannot.
    """
    resolved = resolve_sqlite(url)
    if not resolved.startswith("sqlite:///"):
        open_storage(url)
        return
    file = Path(resolved.removeprefix("sqlite:///").partition("?")[0])
    place = next(place for place in (file, *file.parents) if place.exists())
    if place.is_dir() == (place == file) or not os.access(place, os.W_OK):
        what = "is a folder" if place == file else "cannot be written"
        raise SearchError(f"hpo.study.storage={url}: {place.name or place} {what}; name a file that can be written.")


def alone_with(storage: optuna.storages.BaseStorage) -> contextlib.AbstractContextManager[object]:
    """Keep other processes of this machine from changing the same SQLite file between reading and writing.

    SQLite locks no row that was read, so two processes would take the same waiting trial. PostgreSQL does, and behind a gRPC
    proxy there is one process.

    Parameters
    ----------
    storage : optuna.storages.BaseStorage

    Returns
    -------
    context manager
    """
    inner = getattr(storage, "_backend", storage)  # Optuna wraps a database in a cache
    address = str(getattr(inner, "url", ""))
    return lock_between_processes(address) if address.startswith("sqlite") else contextlib.nullcontext()
