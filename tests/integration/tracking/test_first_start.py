"""The first start of a workspace, which makes MLflow's database: killed, on a full disk, beside another one."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sqlite3
import stat
import tempfile
import time
from pathlib import Path

import pytest

from evbind_lib.config.schema import TrackingParams
from evbind_lib.errors import TrackingError
from evbind_lib.hpo.study import open_storage
from evbind_lib.tracking.store import Store
from tests import forks
from tests.forks import exit_codes


def open_store(folder: Path, largest_file: int = 0, temporary: str | None = None, umask: int = 0o022) -> None:
    """What a process does first; 3 where it is told so in a sentence."""
    tempfile.tempdir = temporary
    os.umask(umask)
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        Store(TrackingParams(uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=str(folder)))
    except TrackingError:
        os._exit(3)


start = functools.partial(forks.start, open_store)


def kill_at_moments(folder: Path, moments: list[float]) -> None:
    (folder / "whole").mkdir()
    exit_codes(start(folder / "whole"))  # the process that the others are forked from has begun now
    for moment in moments:
        place = folder / str(moment)
        place.mkdir()
        process = start(place)
        time.sleep(moment)
        process.kill()
        process.join()
        assert exit_codes(start(place)) == [0], f"a start after one that was killed at {moment} s"
        assert sorted(file.name for file in place.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_start_after_one_that_was_killed_works(tmp_path: Path) -> None:
    kill_at_moments(tmp_path, [1.0])


@pytest.mark.full
def test_a_start_after_one_that_was_killed_at_any_moment_works(tmp_path: Path) -> None:
    kill_at_moments(tmp_path, [number / 12 for number in range(1, 25)])


def test_a_disk_that_is_full_at_the_first_start_spoils_no_later_one(tmp_path: Path) -> None:
    assert exit_codes(start(tmp_path, 200_000)) == [3]
    assert exit_codes(start(tmp_path)) == [0]


def test_two_first_starts_with_temporary_folders_of_their_own_make_one_database(tmp_path: Path) -> None:
    before = os.umask(0o002)  # of a group that shares the workspace
    try:
        assert exit_codes(*(start(tmp_path, 0, str(tmp_path / name), 0o002) for name in "ab")) == [0, 0]
        open_storage(f"sqlite:///{tmp_path / 'optuna.db'}")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("*.db")} == {0o664}


def test_a_database_without_its_last_tables_is_made_again_and_one_of_something_else_is_not(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as connection:  # as MLflow leaves it when it is killed among its migrations
        for table in ("experiments", "_alembic_tmp_experiments", "alembic_version"):
            connection.execute(f"CREATE TABLE {table} (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('451aebb31d03')")
    connection.close()
    assert exit_codes(start(tmp_path)) == [0]
    with sqlite3.connect(other := tmp_path / "diary.db") as connection:
        connection.execute("CREATE TABLE days (text TEXT)")
        connection.execute("INSERT INTO days VALUES ('mine')")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(TrackingError, match=r"diary\.db.*something else.*tracking\.uri"):
        Store(TrackingParams(uri=f"sqlite:///{other}"))
    assert other.read_bytes() == before
