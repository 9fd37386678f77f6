"""A data set as a run sees it: parts, order, normalization and augmentation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import bytes_of, epoch_of, open_named, parquet_folder, whole_part
from sklearn.datasets import load_digits

from distblock.config import DataConfig
from distblock.data.dataset import DataInfo
from distblock.data.opening import open_data
from distblock.errors import DataError


def test_digits_are_divided_into_three_parts_without_overlap():
    data = open_named("digits")
    parts = [whole_part(data, part) for part in ("train", "validation", "test")]
    assert [len(labels) for _, labels in parts] == [1294, 144, 359]
    images = np.concatenate([images for images, _ in parts])
    assert images.shape == (1797, 1, 8, 8)
    labels = np.concatenate([labels for _, labels in parts])
    # Oracle: scikit-learn's own arrays. Together the parts are all of them, each image once, with its label.
    digits: Any = load_digits()
    together = np.column_stack([bytes_of(images, data).reshape(1797, 64), labels])
    expected = np.column_stack([np.rint(digits.data * (255 / 16)), digits.target]).astype(np.int64)
    assert sorted(map(tuple, together)) == sorted(map(tuple, expected))


def test_parts_are_stratified():
    data = open_named("digits")
    for part in ("validation", "test"):
        counts = np.bincount(whole_part(data, part)[1])
        assert counts.max() - counts.min() <= 3


def test_normalization_by_hand():
    data = open_named("digits")
    images, _ = whole_part(data, "train")
    assert images.dtype == np.float32
    # Oracle: 1,294 samples are fewer than the 2,000 that statistics are taken over, so it is exact on training.
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std()) == pytest.approx(1, abs=1e-5)


def test_colour_channels_are_normalized_one_by_one(small_cifar10: Path):
    data = open_named("parquet", small_cifar10)
    images, _ = whole_part(data, "train")
    assert images.mean(axis=(0, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-4)
    assert images.std(axis=(0, 2, 3)) == pytest.approx([1, 1, 1], abs=1e-4)
    assert len(set(data.info.mean)) == 3


def test_a_fraction_keeps_a_balanced_part_of_training_alone(small_cifar10: Path):
    whole, part = (open_named("parquet", small_cifar10, fraction=fraction) for fraction in (1.0, 0.2))
    assert (whole.info.num_train, whole.info.num_validation, whole.info.num_test) == (450, 50, 100)
    assert (part.info.num_train, part.info.num_validation, part.info.num_test) == (90, 50, 100)
    assert np.array_equal(whole_part(whole, "validation")[0], whole_part(part, "validation")[0])
    # Normalization is that of the whole part: a network trained on the fraction sees the test part as any other does.
    assert (part.info.mean, part.info.std) == (whole.info.mean, whole.info.std)
    shares = np.bincount(whole_part(part, "train")[1]) / np.bincount(whole_part(whole, "train")[1])
    assert shares == pytest.approx(np.full(10, 0.2), abs=0.03)


def test_a_fraction_of_balanced_classes_is_balanced(tmp_path: Path):
    folder = parquet_folder(tmp_path, num_train=80, num_classes=4)
    data = open_named("parquet", folder, validation=0.25, fraction=0.2)
    assert np.bincount(whole_part(data, "train")[1]).tolist() == [3, 3, 3, 3]


def test_every_sample_is_trained_on_once_an_epoch_in_an_order_of_its_own():
    data = open_named("digits")
    expected = sorted(map(tuple, bytes_of(whole_part(data, "train")[0], data).reshape(-1, 64)))
    epochs = [bytes_of(epoch_of(data, epoch)[0], data).reshape(-1, 64) for epoch in range(2)]
    for images in epochs:
        assert sorted(map(tuple, images)) == expected
    assert not np.array_equal(epochs[0], epochs[1])


def test_labels_stay_with_their_images(tmp_path: Path):
    data = open_named("parquet", parquet_folder(tmp_path))
    for images, labels in (epoch_of(data, 0, batch=16), whole_part(data, "validation"), whole_part(data, "test")):
        assert (bytes_of(images, data)[:, 0, 0, 0] % 4).tolist() == labels.tolist()


@pytest.mark.parametrize("size", [7, 32, 50, 1000])
def test_the_size_of_evaluation_microbatches_changes_nothing(size: int):
    data = open_named("digits")
    for one, other in zip(whole_part(data, "test", size), whole_part(data, "test", 100), strict=True):
        assert np.array_equal(one, other)


def test_microbatches_can_be_asked_for_in_any_order():
    forward, backward = open_named("digits"), open_named("digits")
    second, first = epoch_of(backward, 1), epoch_of(backward, 0)
    assert np.array_equal(epoch_of(forward, 0)[0], first[0])
    assert np.array_equal(epoch_of(forward, 1)[0], second[0])


def test_augmentation_is_a_function_of_seed_epoch_and_sample(small_cifar10: Path):
    def images(epoch: int, *, seed: int = 0, size: int = 64) -> np.ndarray:
        data = open_named("parquet", small_cifar10, seed=seed, augment=("crop", "flip", "cutout"))
        return epoch_of(data, epoch, size=size)[0]

    assert np.array_equal(images(0), images(0, size=16))
    torch.manual_seed(99)
    assert np.array_equal(images(0), images(0))
    data = open_named("parquet", small_cifar10, augment=("crop", "flip", "cutout"))
    plain = open_named("parquet", small_cifar10)
    # The order of samples does not depend on augmentation; nothing but training is augmented.
    assert np.array_equal(epoch_of(data, 1)[1], epoch_of(plain, 1)[1])
    assert np.array_equal(whole_part(data, "validation")[0], whole_part(plain, "validation")[0])
    assert not np.array_equal(images(0), epoch_of(plain, 0)[0])


def test_a_sample_is_augmented_anew_each_epoch(tmp_path: Path):
    folder = parquet_folder(tmp_path)
    data = open_named("parquet", folder, augment=("cutout",))

    def by_sample(epoch: int) -> dict[int, bytes]:
        images, _ = epoch_of(data, epoch, batch=16)
        # Every pixel is the sample's number, or is cut out: the mean colour, which normalization turns into 0.
        numbers = bytes_of(images, data)
        kept = np.abs(images) > 1e-6
        return {int(n[k][0]): k.tobytes() for n, k in zip(numbers, kept, strict=True)}

    first, second = by_sample(0), by_sample(1)
    assert first.keys() == second.keys()
    assert sum(first[number] != second[number] for number in first) > len(first) / 2


@pytest.mark.parametrize(("name", "check"), [("flip", "flip"), ("crop", "shift"), ("cutout", "square")])
def test_what_each_augmentation_does(small_cifar10: Path, name: str, check: str):
    plain = open_named("parquet", small_cifar10)
    data = open_named("parquet", small_cifar10, augment=(name,))
    before, after = epoch_of(plain, 0)[0][:64], epoch_of(data, 0)[0][:64]
    changed = 0
    for old, new in zip(before, after, strict=True):
        if check == "flip":
            assert np.array_equal(new, old) or np.array_equal(new, old[:, :, ::-1])
        elif check == "shift":
            padded = np.pad(bytes_of(old, plain), ((0, 0), (4, 4), (4, 4)))
            shifts = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
            assert any(np.array_equal(bytes_of(new, data), shift) for shift in shifts)
        else:
            # The square is filled with the mean colour, which normalization turns into 0; it is half the side.
            assert (np.abs(new) < 1e-6).all(axis=0).sum() >= 16 * 16
            different = (new != old).any(axis=0)
            assert different.sum() <= 16 * 16
        changed += not np.array_equal(new, old)
    assert changed > 16


def test_info_survives_json():
    info = open_named("digits").info
    assert DataInfo.from_json(json.loads(json.dumps(asdict(info)))) == info


def test_opening_again_with_what_is_known_gives_the_same(small_cifar10: Path):
    config = DataConfig(name="parquet", path=str(small_cifar10))
    first = open_data(config, seed=3)
    again = open_data(config, seed=3, info=first.info)
    for one, other in zip(epoch_of(first, 0), epoch_of(again, 0), strict=True):
        assert np.array_equal(one, other)


def test_the_split_follows_from_the_seed():
    assert np.array_equal(
        whole_part(open_named("digits", seed=1), "test")[0], whole_part(open_named("digits", seed=1), "test")[0]
    )
    assert not np.array_equal(
        whole_part(open_named("digits", seed=1), "test")[1], whole_part(open_named("digits", seed=2), "test")[1]
    )


def test_images_can_be_resized(small_cifar10: Path):
    data = open_named("parquet", small_cifar10, image_size=24)
    assert data.info.image_size == 24
    assert whole_part(data, "test")[0].shape == (100, 3, 24, 24)


class Labelled(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Numbered tensors with given labels."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 4, 4), index, dtype=torch.uint8), self.labels[index]


def test_a_class_of_one_sample_stays_in_training():
    data = open_data(DataConfig(), seed=0, dataset=lambda: Labelled([0, 1] * 20 + [2]))
    assert 2 in whole_part(data, "train")[1]
    assert 2 not in np.concatenate([whole_part(data, "validation")[1], whole_part(data, "test")[1]])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([], [0], "expected training samples, got none"),
        ([1] * 30, [1], "expected two classes or more, got label 1 for every training sample"),
        ([0, 1] * 20, [0, 2], r"expected a label from 0 to 1, got 2 \(1 such labels\)"),
        ([0, 2] * 20, [0, 1], r"expected a class that the training part has samples of, got 1 \(1 such samples in the"),
        ([0, -1] * 20, [0, 0], "expected a label from 0 to 0, got -1"),
        ([0, 1] * 20, [], "expected samples in the test part, got none"),
    ],
)
def test_labels_that_cannot_be_used(train: list[int], test: list[int], message: str):
    def dataset(part: str) -> Labelled | None:
        return {"train": Labelled(train), "test": Labelled(test)}.get(part)

    with pytest.raises(DataError, match=message):
        open_data(DataConfig(), seed=0, dataset=dataset)
