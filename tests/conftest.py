"""What tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from distblock.runtime.cluster import embed


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """Folder with CIFAR-10 as ``train.parquet`` and ``test.parquet``, beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
    if not (folder / "train.parquet").exists():
        pytest.skip(f"no CIFAR-10 at {folder}")
    return folder


@pytest.fixture(scope="session")
def small_cifar10(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the first 500 training and 100 test images of CIFAR-10, in row groups of 200."""
    folder = tmp_path_factory.mktemp("small-cifar10")
    for part, count in (("train", 500), ("test", 100)):
        table = pq.ParquetFile(cifar10 / f"{part}.parquet").read_row_group(0).slice(0, count)
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=200)
    return folder


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for many runs: starting an embedded one takes longer than most of them."""
    embed(num_cpus=16)
    yield
    ray.shutdown()
