"""The files that a data set is made of, by names and sizes.

Hosts that are to see the same data are compared by this: a folder of equal name may hold something else, and a hash of
all content would read gigabytes. Names cost what opening the data set costs anyhow; sizes are taken of a few files.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from distblock.config import DataConfig
from distblock.data.parquet import locate

MOST_SIZES = 100
"""Files whose sizes are taken, spread evenly over the names."""

_BELOW: dict[str, tuple[str, ...]] = {
    "folder": ("",),
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
    "mnist": ("MNIST/raw",),
    "fashion-mnist": ("FashionMNIST/raw",),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "stl10": ("stl10_binary",),
}
"""What each set reads below ``data.path``: other sets may lie beside it."""

_PARQUET = ("train.parquet", "validation.parquet", "test.parquet")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Files as one host sees them.

    Attributes:
        where: the folder, absolute, or its URI.
        num_files: how many there are.
        names_sha256: of their names, in order.
        sizes: name and bytes of `MOST_SIZES` of them.
    """

    where: str = field(compare=False)
    num_files: int
    names_sha256: str
    sizes: tuple[tuple[str, int], ...]


def list_files(config: DataConfig) -> Listing | None:
    """What this host sees of a data set; None: the set needs no files, or only the user's own code knows them.

    Raises:
        DataError: no file system is known for the path.
        OSError: the storage cannot be asked.
    """
    path = config.path or ""
    if config.name == "parquet":
        filesystem, root = locate(path)
        found = filesystem.get_file_info([f"{root.rstrip('/')}/{name}" for name in _PARQUET])
        sizes = {info.base_name: info.size for info in found if info.type == fs.FileType.File}
        where = path if "://" in path else str(Path(path).absolute())
        return _listing(where, sorted(sizes), lambda name: sizes[name])
    if config.name not in _BELOW:
        return None
    folder = Path(path).absolute()
    names = sorted({name for below in _BELOW[config.name] for name in _walk(folder, below)})
    return _listing(str(folder), names, lambda name: (folder / name).stat().st_size)


def difference(expected: Listing, got: Listing) -> str | None:
    """The first that differs, as "expected ..., got ..."; None: the two hosts see the same."""
    if expected == got:
        return None
    if not got.num_files:
        return f"expected {_files(expected)}, got none"
    if max(expected.num_files, got.num_files) > MOST_SIZES and expected.names_sha256 != got.names_sha256:
        same = expected.num_files == got.num_files
        return f"expected {_files(expected)}, got {'as many of other names' if same else _files(got)}"
    ours, theirs = dict(expected.sizes), dict(got.sizes)
    name = next(name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name))
    return f"expected {name}: {_bytes(ours.get(name))}, got {_bytes(theirs.get(name))}"


def _walk(folder: Path, below: str) -> Iterator[str]:
    """Files in a folder, or the file itself, relative to ``folder``; symbolic links are followed, as readers do."""
    top = folder / below
    if top.is_file():
        yield below
    for place, _, files in os.walk(top, followlinks=True):
        yield from (str((Path(place) / name).relative_to(folder)) for name in files)


def _listing(where: str, names: Sequence[str], size: Callable[[str], int]) -> Listing:
    sampled = names[:: max(1, math.ceil(len(names) / MOST_SIZES))]
    return Listing(
        where=where,
        num_files=len(names),
        names_sha256=hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest(),
        sizes=tuple((name, size(name)) for name in sampled),
    )


def _files(listing: Listing) -> str:
    return "1 file" if listing.num_files == 1 else f"{listing.num_files:,} files"


def _bytes(size: int | None) -> str:
    return "no such file" if size is None else f"{size:,} bytes"
