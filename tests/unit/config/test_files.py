"""Where files lie, in a checkout and installed; files written whole; registries; what the wheel holds."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import filelock
import psutil
import pytest

from evbind_lib.config import paths
from evbind_lib.config.paths import project_folder, resolve_path, resolve_sqlite, write_whole
from evbind_lib.config.processes import is_dead, is_here, lock_between_processes, this_process
from evbind_lib.config.registry import Registry
from evbind_lib.errors import ParamsError
from tests.conftest import PROJECT


def test_state_lies_in_the_workspace(workspace: Path) -> None:
    assert resolve_sqlite("sqlite:///optuna.db") == f"sqlite:///{workspace / 'optuna.db'}"
    assert resolve_sqlite("sqlite:////abs/optuna.db") == "sqlite:////abs/optuna.db"
    assert resolve_sqlite("postgresql://host/db") == "postgresql://host/db"
    (workspace / "posts.csv").write_text("x", encoding="utf-8")
    assert resolve_path("posts.csv") == workspace / "posts.csv"
    assert resolve_path("evbind_lib/data/sample/posts.csv").is_file()  # beside the library, wherever one stands
    assert resolve_path("nowhere.csv") == workspace / "nowhere.csv"


def test_in_a_checkout_and_installed_from_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVBIND_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_folder() == PROJECT == paths.workspace()
    package = tmp_path / "site-packages" / "evbind_lib"
    sample = package / "data" / "sample" / "posts.csv"
    for folder in (package / "params", package / "notebooks", sample.parent):
        folder.mkdir(parents=True)
    sample.write_text("x", encoding="utf-8")
    monkeypatch.setattr(paths, "PACKAGE", package)
    assert project_folder() == package and paths.workspace() == tmp_path
    assert resolve_path("evbind_lib/data/sample/posts.csv") == sample


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "result.yaml"
    write_whole(file, "café")
    assert file.read_text(encoding="utf-8") == "café"
    write_whole(file, b"\x00")
    assert file.read_bytes() == b"\x00"
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    assert file.read_bytes() == b"\x00" and [one.name for one in file.parent.iterdir()] == ["result.yaml"]


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_its_own_also_behind_a_link(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_whole(file := tmp_path / "new.npz", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o664
    file.chmod(0o600)
    (link := tmp_path / "link").symlink_to(file)
    write_whole(link, b"2")
    assert link.is_symlink() and file.read_bytes() == b"2" and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_process_is_known_by_its_start() -> None:
    own = this_process()
    host, number, started = own.rsplit(" ", 2)
    assert is_here(own) and not is_dead(own)
    assert is_dead(f"{host} {number} {float(started) - 9:.1f}")  # another process had this number
    assert not is_here(f"elsewhere {number} {started}") and not is_dead(f"elsewhere {number} {started}")


def test_a_process_lives_whatever_the_clock_and_is_dead_when_its_host_was_booted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, name = this_process(), socket.gethostname()
    number, began = os.getpid(), psutil.Process().create_time()
    assert not is_dead(f"{name} {number} {began:.1f}"), "as it was written before there were boot ids"
    assert is_dead(f"{name} {number} {began - 9:.1f}")
    # What a clock that was set by a second does to every start that is taken from it.
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began + 1)
    assert this_process() == own and not is_dead(own)
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.is_file():
        pytest.skip("this system has no boot ids")
    assert is_dead(own.replace(boot.read_text().strip(), "0f0e-another-boot"))


def test_of_a_process_in_another_pid_namespace_nobody_can_know_from_here() -> None:
    code = (
        "import sys; from evbind_lib.config.processes import is_dead, is_here, this_process as own;"
        "print(own(), is_here(own()), is_dead(own()), is_here(sys.argv[1]), is_dead(sys.argv[1]), sep='|')"
    )
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("a PID namespace cannot be made here")
    command = [*apart, sys.executable, "-c", code, this_process()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PROJECT)
    there, *answers = done.stdout.strip().split("|")
    assert answers == ["True", "False", "False", "False"], done.stderr
    assert there.rsplit(" ", 2)[1] == "1" and not is_here(there) and not is_dead(there)


def test_a_lock_lies_beside_its_database_for_whoever_may_write_there(workspace: Path, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        for address, file in (
            ("sqlite:///some.db", workspace / "some.db.lock"),
            (f"sqlite:///{tmp_path}/new/other.db?timeout=3", tmp_path / "new" / "other.db.lock"),
        ):
            with lock_between_processes(address):
                assert file.is_file() and stat.S_IMODE(file.stat().st_mode) == 0o664
                with pytest.raises(filelock.Timeout):
                    filelock.FileLock(file).acquire(timeout=0)
    finally:
        os.umask(before)
    with lock_between_processes("postgresql://host/db"):
        assert len(list(workspace.glob("*.lock"))) == 2
    (workspace / "trap.db.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), lock_between_processes("sqlite:///trap.db"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "address", ["postgresql://host/x", "sqlite:///new/deep/x.db", "sqlite:///x.db", "sqlite:///mine.db"]
)
def test_a_lock_of_what_cannot_be_used_leaves_nothing_behind_and_touches_nothing_of_the_users(
    workspace: Path, address: str
) -> None:
    (workspace / "mine.db").touch()
    with pytest.raises(ValueError, match="be used"), lock_between_processes(address):
        if (file := paths.sqlite_file(resolve_sqlite(address))) is not None:
            file.touch()
        raise ValueError("it cannot be used")
    assert [each.name for each in workspace.iterdir()] == ["mine.db"]
    with lock_between_processes(address):  # and can be held again
        assert next(workspace.rglob("*.lock"))


def test_a_registry_refuses_an_unknown_name_and_knows_what_was_added() -> None:
    registry = Registry[int]("training.loss_function", "loss", focal=1, weighted_ce=2)
    assert registry["focal"] == 1 and registry.additions() == {} and "fokal" not in registry
    with pytest.raises(ParamsError, match=r"training\.loss_function=fokal: .*loss.*did you mean 'focal'"):
        registry["fokal"]
    registry["hinge"] = 3
    registry["focal"] = 4
    assert registry.additions() == {"focal": 4, "hinge": 3}
    del registry["hinge"]
    assert registry.additions() == {"focal": 4}


def test_the_wheel_holds_every_package_and_everything_in_params_and_notebooks() -> None:
    setuptools = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(file.parent.relative_to(PROJECT).parts) for file in PROJECT.glob("evbind_lib/**/__init__.py")}
    elsewhere = setuptools["package-dir"]
    assert sorted(setuptools["packages"]) == setuptools["packages"]
    assert set(setuptools["packages"]) == found | set(elsewhere)
    for package, patterns in setuptools["package-data"].items():
        folder = PROJECT / elsewhere.get(package, package.replace(".", "/"))
        held = {file for pattern in patterns for file in folder.glob(pattern)}
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
        files = {file for file in folder.rglob("*.*") if file.suffix in (".yaml", ".ipynb", ".png", ".csv", ".json")}
        assert package not in elsewhere or not list(folder.glob("*.py"))  # they would ship as modules
        if package != "evbind_lib":
            # Checkpoints are JupyterLab's, pictures are the README's.
            assert {file for file in files if not {".ipynb_checkpoints", "pictures"} & {*file.parts}} == held
