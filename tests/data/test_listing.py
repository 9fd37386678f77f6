"""Which files two hosts compare, and how they say what differs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from data.samples import parquet_folder

from distblock.config import DataConfig
from distblock.data.listing import MOST_SIZES, Listing, difference, list_files


def listed(path: Path | str, name: str = "folder") -> Listing:
    found = list_files(DataConfig(name=name, path=str(path)))
    assert found is not None
    return found


def tree(root: Path, files: dict[str, int]) -> Path:
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(size))
    return root


def many(root: Path, count: int) -> Path:
    return tree(root, {f"cat/{index:04d}.png": index for index in range(count)})


@pytest.mark.parametrize("name", ["digits", "my_package.data:mine"])
def test_some_sets_need_no_files(name: str):
    assert list_files(DataConfig(name=name)) is None


def test_parquet_by_path_and_uri(tmp_path: Path):
    folder = parquet_folder(tmp_path / "data")
    (folder / "notes.txt").write_text("not of the set")
    by_path, by_uri = listed(folder, "parquet"), listed(folder.as_uri(), "parquet")
    assert by_path == by_uri
    assert by_path.sizes == tuple((name, (folder / name).stat().st_size) for name in ("test.parquet", "train.parquet"))
    assert (by_path.where, by_uri.where) == (str(folder), folder.as_uri())


def test_a_relative_path_is_said_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert listed("data", "parquet").where == listed("data").where == str(tmp_path / "data")


def test_beside_a_torchvision_set_others_may_lie(tmp_path: Path):
    tree(tmp_path, {"cifar-10-batches-py/data_batch_1": 5, "stl10_binary/train_X.bin": 7, "train_32x32.mat": 9})
    assert listed(tmp_path, "cifar10").sizes == (("cifar-10-batches-py/data_batch_1", 5),)
    assert listed(tmp_path, "svhn").sizes == (("train_32x32.mat", 9),)


def test_the_folders_are_those_that_torchvision_reads(tmp_path: Path):
    from distblock.data import listing
    from distblock.vision import datasets

    below = {name: Path(paths[0]) for name, paths in listing._BELOW.items()}
    assert below["cifar10"] == Path(datasets.CIFAR10.base_folder)
    assert below["cifar100"] == Path(datasets.CIFAR100.base_folder)
    assert below["stl10"] == Path(datasets.STL10.base_folder)
    for name, kind in (("mnist", datasets.MNIST), ("fashion-mnist", datasets.FashionMNIST)):
        assert below[name] == Path(kind.__name__, "raw")
    assert listing._BELOW["svhn"] == tuple(datasets.SVHN.split_list[part][1] for part in ("train", "test"))


def test_equal_folders_are_equal_wherever_they_lie(tmp_path: Path):
    one, other = many(tmp_path / "one", 250), tmp_path / "deeper" / "other"
    shutil.copytree(one, other)
    assert difference(listed(one), listed(other)) is None
    assert len(listed(one).sizes) <= MOST_SIZES


def test_links_are_followed(tmp_path: Path):
    real = tree(tmp_path / "real", {"a.png": 3})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(real)
    assert listed(tmp_path / "data").sizes == (("cat/a.png", 3),)


def test_names_that_are_no_text(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    with open(os.fsencode(tmp_path / "cat") + b"/\xff.png", "wb"):  # noqa: PTH123 - Path takes no bytes
        pass
    assert listed(tmp_path).num_files == 1


def test_what_differs(tmp_path: Path):
    small = listed(tree(tmp_path / "small", {"cat/a": 1, "dog/b": 2000}))
    assert difference(small, listed(tmp_path / "none")) == "expected 2 files, got none"
    shorter = listed(tree(tmp_path / "shorter", {"cat/a": 1, "dog/b": 1999}))
    assert difference(small, shorter) == "expected dog/b: 2,000 bytes, got 1,999 bytes"
    fewer = listed(tree(tmp_path / "fewer", {"cat/a": 1}))
    assert difference(small, fewer) == "expected dog/b: 2,000 bytes, got no such file"
    assert difference(fewer, small) == "expected dog/b: no such file, got 2,000 bytes"


def test_what_differs_among_many(tmp_path: Path):
    expected = listed(many(tmp_path / "many", 1200))
    assert difference(expected, listed(many(tmp_path / "fewer", 1199))) == "expected 1,200 files, got 1,199 files"
    renamed = many(tmp_path / "renamed", 1200)
    (renamed / "cat" / "0007.png").rename(renamed / "cat" / "7.png")
    assert difference(expected, listed(renamed)) == "expected 1,200 files, got as many of other names"
    cut = many(tmp_path / "cut", 1200)
    for path in (cut / "cat").iterdir():
        path.write_bytes(b"")
    assert difference(expected, listed(cut)) == "expected cat/0012.png: 12 bytes, got 0 bytes"
