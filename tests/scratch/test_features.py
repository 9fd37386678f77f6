"""Cached outputs: what is stored is what is taken, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distblock.codecs.cast import Features
from distblock.codecs.staging import Staging
from distblock.config import ChannelConfig, Codec
from distblock.errors import InputError
from distblock.messages import Item
from distblock.scratch.features import FeatureCache
from distblock.scratch.shelf import DiskShelf

CPU = Staging(torch.device("cpu"))


def item(number: int, num_samples: int, *, closes: bool = False, purpose: str = "store") -> Item:
    return Item(
        number=number,
        purpose="store" if purpose == "store" else "train",
        part="train",
        epoch=0,
        index=number,
        first_sample=0,
        num_samples=num_samples,
        batch_samples=num_samples,
        closes_batch=True,
        closes_pass=closes,
        stage=1,
        lap=0,
    )


def store(cache: FeatureCache, pieces: list[Features], *, codec: Codec = "fp32") -> Path:
    for number, features in enumerate(pieces):
        count = len(next(iter(features.values())) if isinstance(features, dict) else features)
        closes = number == len(pieces) - 1
        channel = ChannelConfig(codec=codec)
        cache.store(item(number, count, closes=closes), features, torch.zeros(count), channel=channel, staging=CPU)
    return cache.path(1, 0, "train")


def take(cache: FeatureCache, path: Path, positions: list[int]) -> Features:
    labels = np.zeros(len(positions), dtype=np.int64)
    reader = item(0, len(positions), purpose="train")
    return cache.take(path, reader, np.array(positions), labels, staging=CPU)[0]


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(str(tmp_path / "caches"), run="run", folder="caches-of-run")


def test_rows_in_any_order_over_uneven_pieces(cache: FeatureCache):
    pieces: list[Features] = [torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.randn(7, 3, 2, 2)]
    path = store(cache, pieces)
    whole = torch.cat([piece for piece in pieces if isinstance(piece, Tensor)])
    taken = take(cache, path, [14, 0, 4, 3, 8, 8])
    assert isinstance(taken, Tensor)
    assert torch.equal(taken, whole[[14, 0, 4, 3, 8, 8]])
    assert cache.num_batches(path) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_keep_their_bits(cache: FeatureCache, dtype: torch.dtype):
    features = torch.randn(5, 3, 2, 2).to(dtype)
    taken = take(cache, store(cache, [features]), [4, 2])
    assert isinstance(taken, Tensor)
    assert taken.dtype == dtype
    assert torch.equal(taken, features[[4, 2]])


def test_the_codec_is_that_of_the_edge(cache: FeatureCache):
    features = torch.randn(5, 3)
    taken = take(cache, store(cache, [features], codec="bf16"), [1])
    assert isinstance(taken, Tensor)
    assert torch.equal(taken, features[[1]].bfloat16().float())


def test_channels_last_and_dictionaries_come_back_as_they_were(cache: FeatureCache):
    image = torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    taken = take(cache, store(cache, [{"features": image, "mask": torch.arange(5)[:, None]}]), [3, 1])
    assert isinstance(taken, dict)
    assert torch.equal(taken["features"], image[[3, 1]])
    assert taken["features"].is_contiguous(memory_format=torch.channels_last)
    assert taken["mask"].flatten().tolist() == [3, 1]


def test_released_and_closed_nothing_is_left(cache: FeatureCache, tmp_path: Path):
    path = store(cache, [torch.randn(5, 3)])
    take(cache, path, [0])
    cache.release(1, 0)
    assert not path.exists()
    cache.close()
    assert list((tmp_path / "caches").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"regime.cache_dir: cannot make a folder in"):
        FeatureCache(str(tmp_path / "file"), run="run", folder="caches-of-run")


def test_the_shelf_gives_back_what_was_put(tmp_path: Path):
    shelf = DiskShelf(tmp_path)
    state = {"a": torch.randn(3), "counters": torch.tensor([1, 2])}
    shelf.put(2, state)
    shelf.put(2, {**state, "a": torch.zeros(3)})
    assert torch.equal(shelf.get(2)["a"], torch.zeros(3))
    assert shelf.get(2)["counters"].tolist() == [1, 2]
