"""One host's namespaces: network, mounts, host name, processes.

Named namespaces (``ip netns add``) and the processes in them outlive whoever made them and was killed. Ours have no
names: a keeper, process 1 of the namespaces, holds them, and ends at the end of its input, which this process holds.
The kernel then ends everything in them and takes the namespaces, their interfaces and mounts away, however this
process came to its end.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.hosts.requirements import KINDS

PATIENCE_S = 30.0
"""Seconds in which killed processes have to be gone."""

OWNER = "DISTBLOCK_HOSTS_OWNER"
"""In a keeper's environment: the id of the process that it serves."""

# Process 1 inherits what is orphaned; ignoring SIGCHLD, it leaves the reaping to the kernel.
_KEEPER = """
set -e
hostname {name}
ip link set lo up
{setup}
echo ready
exec env --ignore-signal=CHLD cat > /dev/null
"""


class HostProcess(subprocess.Popen[str]):
    """A process in a host; signals go to it and to the group that it leads, past the nsenter in between."""

    def send_signal(self, sig: int) -> None:
        """Also behind `terminate` and `kill`."""
        try:
            inside = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return
        for process in inside:
            try:
                os.killpg(process.pid, sig)
            except ProcessLookupError:
                process.send_signal(sig)  # it does not lead its group yet
        if not inside:
            super().send_signal(sig)


class Namespaces:
    """Made at once; gone, with all in them, after `close`.

    Args:
        name: host name in them.
        setup: shell commands that run in them first, as process 1.

    Raises:
        RuntimeError: the kernel or a command of ``setup`` refused.
    """

    def __init__(self, name: str, setup: str = "") -> None:
        self.name = name
        script = _KEEPER.format(name=shlex.quote(name), setup=setup)
        self._keeper = subprocess.Popen(
            ["unshare", *KINDS, "--propagation=private", "--fork", "sh", "-c", script],
            env={**os.environ, OWNER: str(os.getpid())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command, and for us
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stderr is not None
        if self._keeper.stdout.readline() != "ready\n":
            raise RuntimeError(f"cannot make the namespaces of {name}: {self._keeper.stderr.read().strip()}")
        self.pid = psutil.Process(self._keeper.pid).children()[0].pid
        """Process 1 of the namespaces, as it is numbered here."""

    @property
    def root(self) -> Path:
        """The host's file system, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def popen(self, command: Sequence[str], *, cwd: Path | str = "/", **options: Any) -> HostProcess:
        """Start a command in them; ``options`` are those of ``subprocess.Popen``, ``text`` is on by default."""
        # setsid inside: a group that was made out here would have no number in there.
        enter = ["nsenter", f"--target={self.pid}", *KINDS, f"--wdns={cwd}"]
        return HostProcess([*enter, "setsid", *command], start_new_session=True, **{"text": True, **options})

    def network(self, *command: str) -> str:
        """Run a command of this machine in their network alone, and return its output.

        Raises:
            RuntimeError: it failed.
        """
        entered = ["nsenter", f"--target={self.pid}", "--net", *command]
        done = subprocess.run(entered, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {shlex.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def kill_all(self) -> None:
        """SIGKILL for every process but the keeper, all in one call of the kernel; back when they are gone."""
        command = ["nsenter", f"--target={self.pid}", "--pid", "sh", "-c", f"kill -{signal.SIGKILL.value} -1"]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)  # status 1: there was nobody
        gone = threading.Event()
        for _ in range(int(PATIENCE_S / 0.05)):
            if not self.processes():
                return
            gone.wait(0.05)
        raise RuntimeError(f"{self.name}: {self.processes()} are still there {PATIENCE_S:g} s after SIGKILL")

    def processes(self) -> list[int]:
        """Ids, as numbered here, of what lives in them beside the keeper."""
        namespace = _pid_namespace(self.pid)
        return [pid for pid in psutil.pids() if pid != self.pid and _pid_namespace(pid) == namespace]

    def close(self) -> None:
        """End all processes; the namespaces go with the last."""
        self._keeper.communicate()  # closes its input; the kernel lets process 1 go last


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:  # gone, or a zombie
        return None
