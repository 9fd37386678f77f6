"""A user's project as one archive for the cluster: code, and not what lies beside it.

Ray uploads a folder with what Git ignores left out; a data set or a token in a hidden file may lie in it all the same.
So the archive is made here, by rules that fit on a few lines, and what is large is refused with its name instead of
being sent for minutes. This package goes along, so that the version that checked the settings is the one that trains.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distblock.errors import InputError

LEFT_OUT = ("data", "runs")
"""Folders at the top of a project that stay where they are."""

FILE_BYTES = 10 * 1024**2
"""Files above this stay, and are named."""

PROJECT_BYTES = 100 * 1024**2
PROJECT_FILES = 10_000
"""A project of more is refused."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive that has been written.

    Attributes:
        num_files: the project's files in it.
        too_large: what stayed for its size, relative to the project.
    """

    num_files: int
    too_large: tuple[str, ...]


def pack(folder: Path, to: Path) -> Packed:
    """Write a project and this package as a zip file; equal content gives equal bytes, which Ray uploads once.

    Left out are ``data`` and ``runs`` at the top, what Git ignores, what begins with a dot, virtual environments,
    caches, the file of the cluster's token, and large files.

    Raises:
        InputError: there is no such folder, it holds too much, or a file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"--working-dir: expected the project's folder, got {folder}, which is none")
    small, too_large = _sorted_out(folder)
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in small:
            _add(archive, folder / name, name)
        if "distblock/__init__.py" not in small:
            package = Path(__file__).parents[1]
            for name in _walk(package):
                _add(archive, package / name, f"distblock/{name}")
    return Packed(num_files=len(small), too_large=tuple(too_large))


def _sorted_out(folder: Path) -> tuple[list[str], list[str]]:
    token = os.environ.get("RAY_AUTH_TOKEN_PATH")
    small: list[str] = []
    too_large: list[str] = []
    bytes_below: Counter[str] = Counter()
    for name in _git_files(folder) or _walk(folder, without=LEFT_OUT):
        path = folder / name
        if not _belongs(name) or not path.is_file() or (token and Path(token).exists() and path.samefile(token)):
            continue
        size = path.stat().st_size
        (too_large if size > FILE_BYTES else small).append(name)
        bytes_below[name.partition("/")[0]] += size if size <= FILE_BYTES else 0
        if bytes_below.total() > PROJECT_BYTES or len(small) > PROJECT_FILES:
            largest, amount = bytes_below.most_common(1)[0]
            raise InputError(
                f"--working-dir: expected a project of up to {PROJECT_BYTES // 1024**2} MiB in {PROJECT_FILES} files,"
                f" got more in {folder}, {amount // 1024**2} MiB of it in {largest}; name the code's own folder, keep"
                " data in data/, or have Git ignore it"
            )
    return sorted(small), sorted(too_large)


def _belongs(name: str) -> bool:
    parts = name.split("/")
    return not any(_stays(part) for part in parts) and not (len(parts) > 1 and parts[0] in LEFT_OUT)


def _stays(part: str) -> bool:
    return part.startswith(".") or part in ("__pycache__", "venv")


def _git_files(folder: Path) -> list[str] | None:
    """What Git knows or would add, relative to the folder; None: it is no work tree, or there is no Git."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})


def _walk(folder: Path, without: Sequence[str] = ()) -> Iterator[str]:
    """Files by name, relative to the folder; ``without`` some folders at its top."""
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        outside = without if place == str(folder) else ()
        folders[:] = sorted(name for name in folders if not _stays(name) and name not in outside)
        yield from ((below / name).as_posix() for name in sorted(files) if not _stays(name))


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """A file without its time, which is not its content."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    try:
        archive.writestr(entry, path.read_bytes())
    except OSError as error:
        raise InputError(f"--working-dir: cannot read {path}: {error.strerror}") from None
