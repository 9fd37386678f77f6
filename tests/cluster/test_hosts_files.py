"""What a host sees of this machine's files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.hosts import HostSettings, hosts, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BARE = [HostSettings(cpus=None)] * 2


def test_a_covered_folder_is_each_hosts_own(tmp_path: Path):
    covered = tmp_path / "data"
    covered.mkdir()
    (covered / "real").write_text("of this machine")
    with hosts(BARE, covered=[covered]) as fleet:
        for host in (0, 1):
            assert fleet.run(["ls", "-A", str(covered)], host=host, capture_output=True).stdout == ""
        assert fleet.run(["touch", str(covered / "own")], host=1).returncode == 0
        assert fleet.run(["ls", str(covered)], host=1, capture_output=True).stdout == "own\n"
        assert fleet.run(["ls", str(covered)], host=0, capture_output=True).stdout == ""
        assert fleet.path(1, covered / "own").exists()
        assert not fleet.path(0, covered / "own").exists()
        assert [path.name for path in covered.iterdir()] == ["real"]
    assert [path.name for path in covered.iterdir()] == ["real"]


def test_a_shared_folder_shows_beneath_a_covered_one(tmp_path: Path):
    shared = tmp_path / "covered" / "deep" / "shared"
    shared.mkdir(parents=True)
    (tmp_path / "covered" / "hidden").touch()
    with hosts(BARE, covered=[tmp_path / "covered"], shared=[shared]) as fleet:
        assert fleet.run(["sh", "-c", f"echo word > {shared}/note"], host=1).returncode == 0
        assert fleet.run(["cat", f"{shared}/note"], host=0, capture_output=True).stdout == "word\n"
        assert fleet.run(["ls", str(tmp_path / "covered")], capture_output=True).stdout == "deep\n"
    assert (shared / "note").read_text() == "word\n"


def test_a_folder_that_is_shared_is_not_covered(tmp_path: Path):
    with hosts(BARE, covered=[tmp_path], shared=[tmp_path]) as fleet:
        fleet.run(["touch", str(tmp_path / "from-1")], host=1)
    assert (tmp_path / "from-1").exists()


def test_by_default_runs_and_temporary_files_are_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with hosts(BARE) as fleet:
        done = fleet.run(["sh", "-c", "pwd && touch runs/mine /tmp/mine ~/.cache/mine && findmnt -no FSTYPE /dev/shm"])
        assert done.returncode == 0
        # This Python and what it imports lie beneath covered folders on some machines, and have to show anyhow.
        done = fleet.run(
            [sys.executable, "-c", "import distblock, os; print(os.listdir())"], host=1, capture_output=True
        )
        assert done.stdout == "['runs']\n", done.stderr
    assert not any(path.exists() for path in (work / "runs", Path("/tmp/mine"), Path.home() / ".cache" / "mine"))


def test_what_hosts_need_is_not_covered():
    with pytest.raises(ValueError, match=r"covered: expected .* got"), hosts(BARE, covered=[sys.prefix]):
        pass
