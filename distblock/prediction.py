"""``distblock predict``: classes, probabilities and the stages that answered, as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distblock.data.unlabelled import Countable, open_images, read_images
from distblock.early_exit import read_early_exit
from distblock.errors import InputError
from distblock.evaluation import in_one_piece
from distblock.exits import Exits, check_last, load_exits
from distblock.flags import check_folder
from distblock.learning.blueprint import Build
from distblock.runs import RunDirectory

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("class", pa.int64()),
        ("class_name", pa.string()),
        ("probability", pa.float32()),
        ("stage", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How images are to be predicted.

    Attributes:
        stage: the last that answers; None: the one chosen on validation.
        confidence: probability from which on an earlier stage answers; None: none does.
        accuracy: instead of it, the accuracy on validation that is to be kept.
        is_calibrated: probabilities are corrected by the temperatures that fit validation.
    """

    stage: int | None = None
    confidence: float | None = None
    accuracy: float | None = None
    is_calibrated: bool = False


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What came of it.

    Attributes:
        table: a row an image; see `SCHEMA`.
        confidence: from which on earlier stages have answered; None: none has.
        last: the last stage that answers.
    """

    table: pa.Table
    confidence: float | None
    last: int


def predict(
    directory: RunDirectory, places: Sequence[str], *, to: str | Path, wish: Wish, model: Build | None = None
) -> Predicted:
    """Predict images and write a Parquet file.

    Args:
        directory: the run.
        places: a folder, a Parquet file, or image files.
        to: the file to write.
        wish: how.
        model: your own network, where the run was given it in Python.

    Raises:
        InputError: the run, the images or a wish cannot be used; nothing is written.
    """
    config = in_one_piece(directory.read_config(), None)
    check_folder(to, where="--to")
    exits = load_exits(directory, config=config, model=model)
    last = check_last(exits, wish.stage)
    temperatures, confidence = _settle(directory, wish, last)
    images = open_images(places, memory_bytes=config.data.memory_bytes)
    batches = [
        _batch(exits, images, indices, last, confidence, temperatures, config.data.image_size)
        for indices in _pieces(len(images), config.data.eval_microbatch)
    ]
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    try:
        pq.write_table(table, to)
    except OSError as error:
        raise InputError(f"{to}: cannot be written: {error}") from None
    return Predicted(table=table, confidence=confidence, last=last)


def _settle(directory: RunDirectory, wish: Wish, last: int) -> tuple[list[float] | None, float | None]:
    """The temperatures, and the confidence."""
    if wish.confidence is not None and not 0 < wish.confidence <= 1:
        raise InputError(f"--exit-confidence: expected a probability above 0, at most 1, got {wish.confidence:g}")
    if wish.confidence is not None and wish.accuracy is not None:
        raise InputError("predict: expected --exit-confidence or --exit-accuracy, got both; leave one out")
    if not wish.is_calibrated and wish.accuracy is None:
        return None, wish.confidence
    known = read_early_exit(directory)
    if known is None:
        raise InputError(
            f"predict: expected what validation says of early exits; run distblock evaluate {directory.location}"
            " --early-exit first"
        )
    confidence = wish.confidence if wish.accuracy is None else _confidence_for(known, wish.accuracy, last)
    # The confidences of that file are those of calibrated probabilities.
    return list(known["temperatures"]), confidence


def _confidence_for(known: dict[str, Any], accuracy: float, last: int) -> float:
    """The one that computes least and keeps the accuracy on validation.

    Raises:
        InputError: none does.
    """
    if known["last_stage"] != last:
        raise InputError(
            f"--stage: expected {known['last_stage']}, for which validation was measured, got {last}; leave it out"
        )
    points = known["validation"]
    enough = [point for point in points if point["accuracy"] >= accuracy]
    if not enough:
        best = max(point["accuracy"] for point in points)
        raise InputError(
            f"--exit-accuracy: expected at most {best:.4f}, the best on validation, got {accuracy:g}; choose less"
        )
    return min(enough, key=lambda point: point["cost"])["confidence"]


def _pieces(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _batch(
    exits: Exits,
    images: Countable,
    indices: range,
    last: int,
    confidence: float | None,
    temperatures: Sequence[float] | None,
    resize: int | None,
) -> pa.RecordBatch:
    read = exits.normalized(read_images(images, indices, info=exits.info, resize=resize))
    answers = exits.answer(read, last=last, confidence=confidence, temperatures=temperatures)
    names = np.array(exits.info.class_names, dtype=object)[answers.classes]
    columns = [
        pa.array([images.where(index) for index in indices]),
        pa.array(answers.classes),
        pa.array(names, type=pa.string()),
        pa.array(answers.probabilities),
        pa.array(answers.stages),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
