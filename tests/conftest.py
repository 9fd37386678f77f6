"""What tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """Folder with CIFAR-10 as ``train.parquet`` and ``test.parquet``, beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
    if not (folder / "train.parquet").exists():
        pytest.skip(f"no CIFAR-10 at {folder}")
    return folder
