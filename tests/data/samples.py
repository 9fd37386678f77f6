"""What tests of the data share: whole passes over a part, and files made by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from distblock.config import DataConfig
from distblock.data.dataset import DataSet
from distblock.data.opening import open_data
from distblock.messages import Part
from distblock.schedule.stream import StreamPlan, evaluation_pass, stream


def open_named(name: str, path: Path | str | None = None, *, seed: int = 0, **settings: Any) -> DataSet:
    """Open a data set by name."""
    return open_data(
        DataConfig.model_validate({"name": name, "path": None if path is None else str(path), **settings}), seed=seed
    )


def size_of(data: DataSet, part: Part) -> int:
    return {"train": data.info.num_train, "validation": data.info.num_validation, "test": data.info.num_test}[part]


def whole_part(data: DataSet, part: Part, size: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """All samples of a part in evaluation order, ``size`` a microbatch."""
    pieces = [data.microbatch(item) for item in evaluation_pass(part, size_of(data, part), size)]
    return np.concatenate([images for images, _ in pieces]), np.concatenate([labels for _, labels in pieces])


def epoch_of(data: DataSet, epoch: int, *, batch: int = 64, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All training samples of an epoch in the order they are trained on."""
    plan = StreamPlan(
        num_train=data.info.num_train,
        num_validation=data.info.num_validation,
        num_test=data.info.num_test,
        batch_size=batch,
        microbatch_size=size or batch,
        eval_microbatch_size=batch,
        epochs=epoch + 1,
    )
    pieces = [
        data.microbatch(item) for item in stream(plan) if item and item.purpose == "train" and item.epoch == epoch
    ]
    return np.concatenate([images for images, _ in pieces]), np.concatenate([labels for _, labels in pieces])


def bytes_of(images: np.ndarray, data: DataSet) -> np.ndarray:
    """Normalized images as the grey values 0..255 they were."""
    mean, std = (np.array(each)[:, None, None] for each in (data.info.mean, data.info.std))
    return np.rint((images * std + mean) * 255).astype(np.int64)


def numbered_image(number: int, side: int = 6, mode: str = "RGB") -> Image.Image:
    """An image whose pixels all have the value ``number``, so that it can be told from the others."""
    return Image.new(mode, (side, side), number if mode == "L" else (number, number, number))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    image_column: str = "img",
    label_column: str = "label",
    row_group_size: int = 10,
    class_names: Sequence[str] | None = None,
) -> None:
    """A file as Hugging Face lays it out, class names in its metadata."""
    table = pa.table(
        {
            image_column: pa.array([{"bytes": image, "path": None} for image in images]),
            label_column: pa.array(labels),
        }
    )
    if class_names is not None:
        features = {label_column: {"names": list(class_names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size)


def parquet_folder(
    folder: Path, *, num_train: int = 60, num_test: int = 20, num_classes: int = 4, **options: Any
) -> Path:
    """Two files of numbered images: training sample i has value i, test sample i has 100 + i, both class i modulo."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train", 0, num_train), ("test", 100, num_test)):
        images = [encoded(numbered_image(first + index)) for index in range(count)]
        write_parquet(folder / f"{part}.parquet", images, [index % num_classes for index in range(count)], **options)
    return folder
