"""What a host sees of the file system: this machine's files, but folders of its own over some of them.

Namespaces of one machine share its files, and then every local path "works" on every host. So each host has an empty
tmpfs over the folders in which runs, data and caches lie. What is to be shared (as a network file system would be)
shows through, beneath a covered folder too.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ALWAYS_COVERED = (Path("/tmp/ray"), Path("/dev/shm"))
"""Ray's session and object store: of one node each."""

_STAGE = "/media"
"""Where the machine's own tree is held while folders are covered; every Linux has it, empty."""


def default_covered() -> tuple[Path, ...]:
    """``./runs``, ``/tmp`` and the user's cache."""
    return Path.cwd() / "runs", Path("/tmp"), Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


def needed() -> tuple[Path, ...]:
    """What a host cannot do without: the checkout, the folder one is in, this Python and its packages."""
    checkout = Path(__file__).parents[2]
    on_path = [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return checkout, Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), *on_path


@dataclass(frozen=True, kw_only=True)
class View:
    """Folders covered by each host's own, and folders shared; all absolute, and symbolic links resolved."""

    covered: tuple[Path, ...]
    shared: tuple[Path, ...]

    def commands(self, names: Path) -> str:
        """The shell commands that make it, inside a mount namespace; ``names`` becomes its ``/etc/hosts``."""
        lines = [f"mount --rbind / {_STAGE}"]
        covers = set(self.covered)
        for path in sorted(covers | set(self.shared), key=lambda path: (len(path.parts), path)):
            quoted = shlex.quote(str(path))
            if path in covers:
                lines += [f"mkdir -p {quoted}", f"mount -t tmpfs -o mode=1777 tmpfs {quoted}"]
            elif any(cover in path.parents for cover in covers):
                lines += [f"mkdir -p {quoted}", f"mount --rbind {_STAGE}{quoted} {quoted}"]
        lines += [
            f"mount --bind {_STAGE}{shlex.quote(str(names))} /etc/hosts",
            "mount -t proc proc /proc",
            "mount -t sysfs sysfs /sys",
            f"! test -d {_STAGE}/sys/fs/cgroup || mount --rbind {_STAGE}/sys/fs/cgroup /sys/fs/cgroup",
            f"umount -l {_STAGE}",
        ]
        return "\n".join(lines)


def make_view(*, covered: Sequence[Path | str] | None, shared: Sequence[Path | str]) -> View:
    """Everything resolved; a folder that is shared is not covered, and what hosts need is shared.

    Raises:
        ValueError: the whole tree, or something that hosts need, was to be covered.
    """
    chosen = default_covered() if covered is None else covered
    show = {Path(path).resolve() for path in shared}
    cover = {Path(path).resolve() for path in (*chosen, *ALWAYS_COVERED)} - show
    need = {path.resolve() for path in needed()}
    wrong = sorted(str(path) for path in cover & (need | {Path("/")}))
    if wrong:
        raise ValueError(f"covered: expected folders that a host can do without, got {', '.join(wrong)}")
    return View(covered=tuple(cover), shared=tuple(show | need))


@contextmanager
def mount_points(view: View) -> Iterator[None]:
    """Folders to cover have to exist; those that did not are gone afterwards, if they are still empty."""
    made: list[Path] = []
    for path in view.covered:
        above = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        made += above
    try:
        yield
    finally:
        for path in sorted(made, key=lambda path: -len(path.parts)):
            if not any(path.iterdir()):
                path.rmdir()
