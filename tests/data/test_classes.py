"""Which classes a run tells apart, and how many samples it learns each from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import bytes_of, epoch_of, open_named, parquet_folder, whole_part

from distblock.data.dataset import DataSet
from distblock.errors import DataError
from distblock.messages import Part

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def test_chosen_classes_keep_their_own_samples_in_every_part():
    every, some = open_named("digits"), open_named("digits", classes=[7, 2])
    assert some.info.class_names == ("7", "2")
    for place, digit in enumerate((7, 2)):
        # Which part a sample is in may differ; which samples there are may not.
        assert pixels(some, place) == pixels(every, digit)
    for part in PARTS:
        assert set(whole_part(some, part)[1]) == {0, 1}


def pixels(data: DataSet, label: int) -> list[bytes]:
    """All images of a class, in an order of their own."""
    parts = [whole_part(data, part) for part in PARTS]
    return sorted(image.tobytes() for images, labels in parts for image in bytes_of(images[labels == label], data))


def test_chosen_classes_of_a_file_in_row_groups(tmp_path: Path):
    folder = parquet_folder(tmp_path, num_train=60, num_classes=4)
    data = open_named("parquet", folder, classes=[3, 1], memory_bytes=1)
    images, labels = epoch_of(data, 0, batch=8)
    grey = bytes_of(images, data)[:, 0, 0, 0]
    # Sample i has grey value i and class i modulo 4.
    assert np.array_equal(np.where(labels == 0, 3, 1), grey % 4)
    assert len(set(grey.tolist())) == data.info.num_train
    assert open_named("parquet", folder, classes=[3, 1]).info == data.info


def test_few_samples_of_the_classes_that_are_learned():
    data = open_named("digits", train_classes=[5, 6], per_class=20)
    assert np.bincount(whole_part(data, "train")[1]).tolist() == [0, 0, 0, 0, 0, 20, 20]
    assert len(np.unique(whole_part(data, "validation")[1])) == 10
    other = open_named("digits", train_classes=[5, 6], per_class=20, seed=1)
    assert not np.array_equal(whole_part(data, "train")[0], whole_part(other, "train")[0])
    # What they are drawn from is the training part alone, normalized as all of it.
    whole = open_named("digits")
    assert data.info.mean == whole.info.mean
    known = {image.tobytes() for image in bytes_of(whole_part(whole, "train")[0], whole)}
    assert {image.tobytes() for image in bytes_of(whole_part(data, "train")[0], data)} <= known


def test_absent_classes_come_first():
    data = open_named("digits", absent_classes=["cat", "dog"])
    assert data.info.class_names[:3] == ("cat", "dog", "0")
    labels = whole_part(data, "test")[1]
    assert (labels.min(), labels.max()) == (2, 11)


def test_normalization_that_is_given():
    data = open_named("digits", mean=[0.5], std=[0.25])
    expected = (bytes_of(whole_part(open_named("digits"), "test")[0], open_named("digits")) / 255 - 0.5) / 0.25
    assert whole_part(data, "test")[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["7", "cat"]}, r"data.classes: expected some of 0, 1, .*, got cat"),
        ({"classes": ["7"]}, "expected two classes or more, got label 0"),
        ({"train_classes": ["x"]}, r"data.train_classes: expected some of 0, .*, got x"),
        ({"absent_classes": ["3"]}, r"data.absent_classes: expected classes that the data do not have, got 3"),
        ({"mean": [0.1, 0.2, 0.3], "std": [1.0]}, r"data.mean: expected a number for each of 1 channels, got 3"),
    ],
)
def test_classes_that_cannot_be(settings: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        open_named("digits", **settings)
