"""Parquet files as Hugging Face lays them out, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import (
    bytes_of,
    encoded,
    epoch_of,
    numbered_image,
    open_named,
    parquet_folder,
    whole_part,
    write_parquet,
)

from distblock.data.parquet import ParquetSource, locate
from distblock.errors import DataError


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "label"), ("img", "fine_label")])
def test_the_columns_names_that_are_known(tmp_path: Path, columns: tuple[str, str]):
    folder = parquet_folder(tmp_path, image_column=columns[0], label_column=columns[1], class_names=list("abcd"))
    data = open_named("parquet", folder)
    assert data.info.class_names == ("a", "b", "c", "d")
    images, labels = whole_part(data, "test")
    assert bytes_of(images, data)[:, 0, 0, 0].tolist() == list(range(100, 120))
    assert labels.tolist() == [index % 4 for index in range(20)]


def test_class_names_in_plain_metadata_or_none(tmp_path: Path):
    folder = parquet_folder(tmp_path)
    assert open_named("parquet", folder).info.class_names == ("0", "1", "2", "3")
    table = pq.read_table(folder / "train.parquet").replace_schema_metadata({"class_names": "w,x,y,z"})
    pq.write_table(table, folder / "train.parquet")
    assert open_named("parquet", folder).info.class_names == ("w", "x", "y", "z")


def test_a_validation_file_is_used_where_there_is_one(tmp_path: Path):
    folder = parquet_folder(tmp_path)
    write_parquet(folder / "validation.parquet", [encoded(numbered_image(200 + n)) for n in range(8)], [0, 1] * 4)
    data = open_named("parquet", folder)
    assert (data.info.num_train, data.info.num_validation) == (60, 8)
    assert bytes_of(whole_part(data, "validation")[0], data)[:, 0, 0, 0].tolist() == list(range(200, 208))


def test_a_uri_gives_what_the_path_gives(tmp_path: Path):
    folder = parquet_folder(tmp_path)
    one, other = open_named("parquet", folder), open_named("parquet", folder.as_uri())
    assert np.array_equal(epoch_of(one, 0)[0], epoch_of(other, 0)[0])


def test_a_file_larger_than_memory_is_read_a_window_of_row_groups_at_a_time(tmp_path: Path):
    folder = parquet_folder(tmp_path, row_group_size=10)
    metadata = pq.ParquetFile(folder / "train.parquet").metadata
    largest = max(metadata.row_group(group).total_byte_size for group in range(6))
    source = ParquetSource(*locate(str(folder / "train.parquet")), memory_bytes=2 * largest)
    assert source.window == 2
    data = open_named("parquet", folder, memory_bytes=2 * largest, validation=0.1)
    images, _ = epoch_of(data, 0, batch=16)
    numbers = bytes_of(images, data)[:, 0, 0, 0]
    held_out = set(bytes_of(whole_part(data, "validation")[0], data)[:, 0, 0, 0].tolist())
    assert sorted(numbers.tolist()) == sorted(set(range(60)) - held_out)
    # Two groups of ten at a time: the order visits three windows one after the other.
    groups = [int(number) // 10 for number in numbers]
    starts = [index for index, group in enumerate(groups) if group not in groups[:index]]
    first_window = {groups[0], next(group for group in groups if group != groups[0])}
    end = next(index for index, group in enumerate(groups) if group not in first_window)
    assert len(starts) == 6
    assert not first_window & set(groups[end:])


def test_a_source_holds_no_more_row_groups_than_its_window(tmp_path: Path):
    folder = parquet_folder(tmp_path, row_group_size=10)
    source = ParquetSource(*locate(str(folder / "train.parquet")), memory_bytes=1)
    assert source.window == 1
    for index in (0, 15, 59, 3):
        assert source.image(index).getpixel((0, 0)) == (index, index, index)
        assert len(source._held) == 1


def test_grey_images_have_one_channel(tmp_path: Path):
    for part, count in (("train", 40), ("test", 10)):
        images = [encoded(numbered_image(number, mode="L")) for number in range(count)]
        write_parquet(tmp_path / f"{part}.parquet", images, [number % 2 for number in range(count)])
    assert open_named("parquet", tmp_path).info.channels == 1


def _truncate(folder: Path) -> None:
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(content[: len(content) // 2])


def _without_test(folder: Path) -> None:
    (folder / "test.parquet").unlink()


def _drop(column: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        pq.write_table(pq.read_table(folder / "train.parquet").drop_columns([column]), folder / "train.parquet")

    return drop


def _labels(values: list[object]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        table = pq.read_table(folder / "train.parquet")
        column = pa.array((values * 60)[:60])
        pq.write_table(table.set_column(1, "label", column), folder / "train.parquet")

    return replace


def _wrong_label(folder: Path) -> None:
    write_parquet(folder / "test.parquet", [encoded(numbered_image(n)) for n in range(5)], [0, 1, 2, 3, 4])


def _bad_image(content: bytes | None) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        images = [encoded(numbered_image(number)) for number in range(60)]
        broken: list[bytes | None] = [*images[:5], content, *images[6:]]
        write_parquet(folder / "train.parquet", broken, [number % 4 for number in range(60)])

    return replace


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"train\.parquet: expected a whole Parquet file, got: "),
        (_without_test, r"test\.parquet: no such file; expected train\.parquet and test\.parquet in the folder"),
        (_drop("img"), r"expected a column img or image \(struct<bytes, path>\), got columns label"),
        (_drop("label"), r"expected a column label or fine_label \(whole numbers\), got columns img"),
        (_labels([0.5, 1.5]), "expected whole numbers in column label, got double"),
        (_labels([0, None]), "expected whole numbers in column label, got 30 nulls"),
        (_wrong_label, r"test\.parquet, row 4: expected a label from 0 to 3, got 4"),
        (_bad_image(b"no image"), r"train\.parquet, row 5: expected an encoded image, got one that does not decode"),
        (_bad_image(None), r"train\.parquet, row 5: expected an encoded image, got one that does not decode"),
        (_bad_image(encoded(numbered_image(1))[:40]), r"train\.parquet, row 5: .* does not decode"),
        (
            _bad_image(encoded(numbered_image(1, side=9))),
            r"row 5: expected an image of 3 x 6 x 6 \(channels, height, width\), got 3 x 9 x 9; set --data.image-size",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, damage: Callable[[Path], None], message: str):
    folder = parquet_folder(tmp_path)
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        open_named("parquet", folder)
    assert "\n" not in str(caught.value)


def test_a_folder_or_scheme_that_is_not_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.path: expected the folder of parquet, got .*nowhere: no such folder"):
        open_named("parquet", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected a folder or a URI that pyarrow\.fs reaches, got ftq://x"):
        open_named("parquet", "ftq://x")
    with pytest.raises(DataError, match=r"nowhere/train\.parquet: no such file"):
        open_named("parquet", (tmp_path / "nowhere").as_uri())
