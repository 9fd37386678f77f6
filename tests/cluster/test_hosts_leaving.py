"""However the owner ends, nothing of its hosts stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from cluster.hosts import HostSettings, Link, hosts, missing
from cluster.hosts.leftovers import FOLDER_PREFIX, clean

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

DELAYED = Link(rate="100mbit", delay_s=0.01)
BARE = [HostSettings(cpus=None, link=DELAYED), HostSettings(cpus=None)]
OWNER = """
import os, subprocess, sys
from cluster.hosts import HostSettings, Link, hosts
link = Link(rate="100mbit", delay_s=0.01)
with hosts([HostSettings(cpus=None, link=link), HostSettings(cpus=None)]) as fleet:
    process = fleet.popen(["sh", "-c", "echo in; exec sleep 1000"], host=1, stdout=subprocess.PIPE)
    process.stdout.readline()
    print(*(os.readlink(f"/proc/{fleet.processes(1)[0]}/ns/{kind}") for kind in ("pid", "net", "mnt")), flush=True)
    sys.stdin.read()
"""


def seen(begun_s: float) -> set[str]:
    """Every namespace in which a process of this machine lives that had begun by then, every interface and every named
    namespace. (A namespace's number is used again by the next one, of whoever makes hosts meanwhile.)"""
    found: set[str] = set()
    for process in psutil.process_iter():
        for kind in ("net", "mnt", "pid", "uts"):
            try:
                if process.create_time() <= begun_s:
                    found.add(str(Path(f"/proc/{process.pid}/ns/{kind}").readlink()))
            except (OSError, psutil.Error):
                continue
    for listing in (["ip", "-j", "link"], ["ip", "-j", "netns"]):
        out = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        found |= {str(entry.get("ifname", entry.get("name"))) for entry in json.loads(out or "[]")}
    return found


def folders(owner: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}{owner}-*"))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_after_the_context_nothing_is_left(error: type[BaseException] | None):
    own: set[str] = set()
    before = psutil.Process().children(recursive=True)  # other tests may have left a cluster to this process

    def use() -> None:
        with hosts(BARE) as fleet:
            process = fleet.popen(["sh", "-c", "echo in; exec sleep 1000"], host=1, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            inside = fleet.processes(1)[0]
            own.update(str(Path(f"/proc/{inside}/ns/{kind}").readlink()) for kind in ("net", "mnt", "pid", "uts"))
            assert own <= seen(time.time())
            begun_s.append(time.time())
            children.extend(child for child in psutil.Process().children(recursive=True) if child not in before)
            assert folders(os.getpid())
            if error is not None:
                raise error
        process.communicate()

    children: list[psutil.Process] = []
    begun_s: list[float] = []
    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert len(own) == 4
    assert not own & seen(begun_s[0])
    assert len(children) > 5  # keepers, the forwarder, the command, and what they run under
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert folders(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_the_owners_death_nothing_runs(number: signal.Signals, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        own = set(owner.stdout.readline().split())
        begun_s = time.time()
        children = psutil.Process(owner.pid).children(recursive=True)
        owner.send_signal(number)
        owner.wait()
    assert len(own) == 3
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert not own & seen(begun_s)
    # Its folder is all that there is for `clean`.
    left = [f"folder {folder}" for folder in folders(owner.pid)]
    assert len(left) == 1
    assert [line for line in clean() if str(owner.pid) in line] == left
    assert folders(owner.pid) == []


def test_clean_leaves_the_living_alone():
    with hosts(BARE) as fleet:
        clean()
        assert folders(os.getpid())
        assert fleet.run(["true"], host=1).returncode == 0
