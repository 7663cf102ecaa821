"""Real servers of PostgreSQL and MLflow for tests, of the test's own."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forks

NO_POSTGRES = "PostgreSQL's programs are not installed here (Debian: apt-get install postgresql)"


def free_port() -> int:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def postgres_programs() -> Path | None:
    """Folder of initdb and pg_ctl: on the path, or where Debian puts them."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).parent] if on_path else []
    places += [Path(place) for place in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    return next((place for place in places if (place / "initdb").exists()), None)


@contextlib.contextmanager
def postgres(host: str = "127.0.0.1") -> Iterator[str]:
    """A PostgreSQL server in a folder of its own; yields the address of an empty database."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip(NO_POSTGRES)
    folder = Path(tempfile.mkdtemp(prefix="evbind-postgres-"))
    as_user: dict[str, int] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to be run by root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid}
    data, port = folder / "data", free_port()

    def call(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, **as_user)
        assert done.returncode == 0, done.stderr

    call(str(programs / "initdb"), "-D", str(data), "-U", "evbind", "--auth=trust", "--no-sync")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all trust\n")
    options = f"-p {port} -c listen_addresses={host} -c unix_socket_directories={folder} -c fsync=off"
    call(str(programs / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://evbind@{host}:{port}/postgres"
    finally:
        with contextlib.suppress(AssertionError):
            call(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: Path, port: int) -> None:
    """Run MLflow's server by its own command, in this process: by itself it starts another that loads everything again."""
    import mlflow.cli
    import mlflow.server

    def here(command: list[str], extra_env: dict[str, str], **others: Any) -> None:
        os.environ.update(extra_env)
        sys.argv = command[2:]  # after the interpreter and -m
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

    os.setsid()
    os.chdir(folder)
    with (folder / "log").open("w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # four processes less
    mlflow.server._exec_cmd = here
    words = ["--port", str(port), "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db"]
    mlflow.cli.cli(["server", *words, "--artifacts-destination", "files"])


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """Address of an MLflow server in a process of its own."""
    address = f"http://127.0.0.1:{(port := port or free_port())}"
    process = forks.Forked(forks.start(_serve, folder, port))
    try:
        deadline = time.monotonic() + 90
        while True:
            assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()[-2000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
