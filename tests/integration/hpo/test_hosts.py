"""Two machines with one study, one MLflow and one workspace, as an array job has them: namespaces of this one, by Linux."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from evbind_lib.hpo.study import finished_trials
from tests.conftest import BRIEF
from tests.integration.hpo.test_crashes import SCRIPT, check, first_fold
from tests.storages import postgres

SERVER = "10.213.77.1"  # reached from both


@contextlib.contextmanager
def machines(*names: str) -> Iterator[dict[str, list[str]]]:
    """What begins a command on each of these machines: a network, a host name and numbers of processes of its own."""
    commands = [f"ip address add {SERVER}/32 dev lo"]
    for number, name in enumerate(names, start=2):
        within, net = f"ip netns exec {name}", f"10.213.{number}"
        commands += [f"ip netns add {name}", f"ip link add {name} type veth peer name eth0 netns {name}"]
        commands += [f"ip address add {net}.1/24 dev {name}", f"ip link set {name} up"]
        commands += [f"{within} ip address add {net}.2/24 dev eth0", f"{within} ip link set eth0 up"]
        commands += [f"{within} ip link set lo up", f"{within} ip route add default via {net}.1"]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode and shutil.which("ip"):
                pytest.skip(f"no network namespaces here ({command}: {done.stderr.strip()})")
        apart = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
        yield {name: ["ip", "netns", "exec", name, *apart, f'hostname {name}; "$@"', "sh"] for name in names}
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "address", "delete", f"{SERVER}/32", "dev", "lo"], capture_output=True)


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="networks of one's own need root and iproute2")
def test_two_machines_share_a_study_and_one_takes_over_what_the_other_was_at(workspace: Path) -> None:
    n_trials, script = 6, workspace / "search.py"
    script.write_text(SCRIPT, encoding="utf-8")
    psycopg = pytest.importorskip("psycopg")
    with machines("evbind-a", "evbind-b") as on, postgres(SERVER) as storage, contextlib.ExitStack() as end:
        with psycopg.connect(storage, autocommit=True) as connection:
            connection.execute("CREATE DATABASE runs")
        tracking = f"{storage.rpartition('/')[0]}/runs"
        words = [*BRIEF, "training.args.max_steps=20", f"hpo.trials.n_trials={n_trials}"]
        words += [f"hpo.study.storage={storage}", f"tracking.uri={tracking}"]

        def start(machine: str) -> subprocess.Popen[bytes]:
            command = [*on[machine], sys.executable, "-W", "ignore", str(script), *words]
            process = subprocess.Popen(command, env={**os.environ, "EVBIND_WORKSPACE": str(workspace)})
            end.callback(process.kill)
            return process

        first = start("evbind-a")
        begun = first_fold(first, storage=storage)
        second = start("evbind-b")
        lost = first_fold(first, [begun.number], storage)
        first.send_signal(signal.SIGKILL)
        assert second.wait(timeout=200) == 0
        check(n_trials, storage, tracking)
        study = optuna.load_study(study_name="deberta-v3-hpo", storage=storage)
        hosts = {trial.user_attrs["worker"].partition("/")[0] for trial in finished_trials(study)}
        assert hosts == {"evbind-a", "evbind-b"}
        (again,) = [trial for trial in study.trials if trial.user_attrs.get("retry_of") == lost.number]
        assert again.user_attrs["worker"].startswith("evbind-b/") and again.user_attrs["folds_from_before"] == 1
