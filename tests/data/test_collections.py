"""Data sets by name: image folders, torchvision's files (written by hand), and the user's own."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import bytes_of, numbered_image, open_named, whole_part

from distblock.config import DataConfig
from distblock.data.opening import open_data
from distblock.errors import DataError, InputError

RNG = np.random.default_rng(0)


def write_folder(root: Path, classes: dict[str, list[int]]) -> None:
    for name, numbers in classes.items():
        (root / name).mkdir(parents=True)
        for number in numbers:
            numbered_image(number).save(root / name / f"{number:03d}.png")


def test_a_folder_of_classes_is_split(tmp_path: Path):
    write_folder(tmp_path, {"cat": list(range(40)), "dog": list(range(40, 80))})
    data = open_named("folder", tmp_path)
    assert data.info.class_names == ("cat", "dog")
    assert (data.info.num_train, data.info.num_validation, data.info.num_test) == (58, 6, 16)
    for part in ("train", "validation", "test"):
        images, labels = whole_part(data, part)
        assert (bytes_of(images, data)[:, 0, 0, 0] >= 40).astype(int).tolist() == labels.tolist()


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_parts_are_taken_as_they_are(tmp_path: Path, validation: str):
    for part, start in (("train", 0), (validation, 100), ("test", 200)):
        write_folder(
            tmp_path / part, {"cat": list(range(start, start + 20)), "dog": list(range(start + 20, start + 30))}
        )
    data = open_named("folder", tmp_path)
    assert (data.info.num_train, data.info.num_validation, data.info.num_test) == (30, 30, 30)
    assert bytes_of(whole_part(data, "validation")[0], data)[:, 0, 0, 0].min() == 100


def test_a_folder_with_an_image_that_does_not_decode(tmp_path: Path):
    write_folder(tmp_path, {"cat": list(range(20)), "dog": list(range(20, 40))})
    (tmp_path / "cat" / "003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"003\.png: expected an encoded image, got one that does not decode"):
        open_named("folder", tmp_path)


def test_folders_whose_classes_differ(tmp_path: Path):
    write_folder(tmp_path / "train", {"cat": list(range(20)), "dog": list(range(20, 40))})
    write_folder(tmp_path / "test", {"cat": [1], "cow": [2]})
    with pytest.raises(DataError, match=r"test: expected the classes of training .*'dog'.*, got .*'cow'"):
        open_named("folder", tmp_path)


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(DataError, match="expected a folder of images for each class"):
        open_named("folder", tmp_path)


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: magic number, sizes as big-endian integers, bytes."""
    header = (0x0800 + array.ndim).to_bytes(4, "big") + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images, labels = pixels(60, 28, 28), np.arange(60, dtype=np.uint8) % 10
    for part, count in (("train", 60), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", images[:count])
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels[:count])
    return images[:20, None], labels[:20]


def write_cifar(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    fine = name == "cifar100"
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    images, labels = pixels(20, 3, 32, 32), np.arange(20) % 10
    content = {"data": images.reshape(20, -1), "fine_labels" if fine else "labels": labels.tolist()}
    for file in ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        (folder / file).write_bytes(pickle.dumps(content))
    names = {"fine_label_names" if fine else "label_names": [f"class {n}" for n in range(10)]}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(names))
    return images, labels


def write_svhn(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import savemat

    images, labels = pixels(30, 3, 32, 32), np.arange(30) % 10
    # The files count classes from 1, 10 for the digit 0, and keep samples in the last dimension.
    content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", content)
    return images, labels


def write_stl10(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "stl10_binary"
    folder.mkdir()
    images, labels = pixels(20, 3, 96, 96), np.arange(20) % 10
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("".join(f"class {n}\n" for n in range(10)))
    (folder / "fold_indices.txt").write_text("")
    return images, labels


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mnist", lambda root, name: write_mnist(root, "MNIST")),
        ("fashion-mnist", lambda root, name: write_mnist(root, "FashionMNIST")),
        ("cifar10", write_cifar),
        ("cifar100", write_cifar),
        ("svhn", write_svhn),
        ("stl10", write_stl10),
    ],
)
def test_torchvision_sets_from_a_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    write: Callable[[Path, str], tuple[np.ndarray, np.ndarray]],
):
    from distblock.vision import torchvision

    # Files made here have other checksums than the published ones.
    for module in ("cifar", "svhn", "stl10"):
        monkeypatch.setattr(
            getattr(torchvision.datasets, module), "check_integrity", lambda path, md5=None: Path(path).is_file()
        )
    images, labels = write(tmp_path, name)
    data = open_named(name, tmp_path)
    read_images, read_labels = whole_part(data, "test")
    assert read_labels.tolist() == labels.tolist()
    assert np.array_equal(bytes_of(read_images, data), images)
    assert data.info.channels == images.shape[1]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "stl10"])
def test_torchvision_sets_that_are_not_there(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=rf"data\.path: expected {name} as torchvision stores it in") as caught:
        open_named(name, tmp_path)
    assert "\n" not in str(caught.value)


class Squares(torch.utils.data.Dataset[tuple[Any, int]]):
    """Forty images of one kind; sample i has value i and class i modulo 2."""

    def __init__(self, kind: str = "pil") -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Any, int]:
        array = np.full((6, 6, 3), index, dtype=np.uint8)
        kinds: dict[str, Callable[[], Any]] = {
            "pil": lambda: Image.fromarray(array),
            "array": lambda: array,
            "grey array": lambda: array[:, :, 0],
            "bytes": lambda: torch.from_numpy(array.transpose(2, 0, 1).copy()),
            "floats": lambda: torch.from_numpy(array.transpose(2, 0, 1).copy()) / 255,
            "text": lambda: "image",
        }
        return kinds[self.kind](), index % 2


@pytest.mark.parametrize("kind", ["pil", "array", "grey array", "bytes", "floats"])
def test_the_users_images_may_be_of_any_kind(kind: str):
    data = open_data(DataConfig(), seed=0, dataset=lambda: Squares(kind))
    assert data.info.channels == (1 if kind == "grey array" else 3)
    images, labels = whole_part(data, "train")
    numbers = bytes_of(images, data)[:, 0, 0, 0]
    assert (numbers % 2).tolist() == labels.tolist()
    others = [bytes_of(whole_part(data, part)[0], data)[:, 0, 0, 0] for part in ("validation", "test")]
    assert sorted(np.concatenate([numbers, *others]).tolist()) == list(range(40))


def test_a_function_of_a_part_is_asked_for_each():
    asked = []

    def dataset(part: str) -> Squares | None:
        asked.append(part)
        return None if part == "validation" else Squares()

    data = open_data(DataConfig(), seed=0, dataset=dataset)
    assert asked == ["train", "validation", "test"]
    assert (data.info.num_train, data.info.num_validation, data.info.num_test) == (36, 4, 40)


def test_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_squares.py").write_text("from test_collections import Squares as make\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_named("own_squares:make").info.num_train == 29


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: [1, 2].__iter__(), r"expected a map-style torch\.utils\.data\.Dataset of \(image, label\)"),
        (lambda: Squares("text"), r"expected a PIL image, array or tensor, got str"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero; expected a function of part"),
        (lambda: [(np.zeros((4, 4)), 0.5)] * 9, "expected"),
        (lambda: [np.zeros((4, 4))] * 9, r"\[0\]: expected \(image, label\), got ndarray"),
    ],
)
def test_the_users_mistakes_are_explained(dataset: Callable[[], Any], message: str):
    with pytest.raises(DataError, match=message) as caught:
        open_data(DataConfig(), seed=0, dataset=dataset)
    assert "\n" not in str(caught.value)


def test_unknown_names():
    with pytest.raises(DataError, match=r"data\.name: expected one of digits, cifar10, .*, got imagenet"):
        open_named("imagenet", ".")
    with pytest.raises(InputError, match=r"data\.name: cannot import nowhere: ModuleNotFoundError"):
        open_named("nowhere:make")
