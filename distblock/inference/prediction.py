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
from distblock.errors import InputError
from distblock.evaluation import in_one_piece
from distblock.flags import check_folder
from distblock.inference.exits import Exits, check_last, load_exits
from distblock.inference.policies import Policy
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
        asked: the stages that may, where not all; None: all.
        accuracy: instead of both, the accuracy on validation that is to be kept.
        is_calibrated: probabilities are corrected by the temperatures that fit validation.
    """

    stage: int | None = None
    confidence: float | None = None
    asked: tuple[int, ...] | None = None
    accuracy: float | None = None
    is_calibrated: bool = False


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What came of it.

    Attributes:
        table: a row an image; see `SCHEMA`.
        policy: when earlier stages have answered; None: none has.
        last: the last stage that answers.
    """

    table: pa.Table
    policy: Policy | None
    last: int

    @property
    def answered(self) -> str:
        """Which stages have answered, in one line."""
        if self.policy is None:
            return f"all answered by stage {self.last}"
        stages = self.table.column("stage").to_numpy()
        asked = [*filter(self.policy.asks, range(self.last)), self.last]
        shares = [f"stage {stage} {np.mean(stages == stage):.0%}" for stage in asked]
        return f"from a probability of {self.policy.confidence:g} on a stage answers: {', '.join(shares)}"


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
    temperatures, policy = _settle(directory, wish, last)
    images = open_images(places, memory_bytes=config.data.memory_bytes)
    if not len(images):
        raise InputError(f"{', '.join(places)}: expected images, got none")
    batches = [
        _batch(exits, images, indices, last, policy, temperatures, config.data.image_size)
        for indices in _pieces(len(images), config.data.eval_microbatch)
    ]
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    try:
        pq.write_table(table, to)
    except OSError as error:
        raise InputError(f"{to}: cannot be written: {error}") from None
    return Predicted(table=table, policy=policy, last=last)


def _settle(directory: RunDirectory, wish: Wish, last: int) -> tuple[list[float] | None, Policy | None]:
    """The temperatures, and when stages answer early."""
    _check(wish, last)
    policy = None if wish.confidence is None else Policy(confidence=wish.confidence, asked=wish.asked)
    if not wish.is_calibrated and wish.accuracy is None:
        return None, policy
    known = directory.read_early_exit()
    if known is None:
        raise InputError(
            f"predict: expected what validation says of early exits; run distblock evaluate {directory.location}"
            " --early-exit first"
        )
    # The confidences of that file are those of calibrated probabilities.
    temperatures = list(known["temperatures"])
    return temperatures, policy if wish.accuracy is None else _policy_for(known, wish.accuracy, last)


def _check(wish: Wish, last: int) -> None:
    """That a wish can be.

    Raises:
        InputError: it cannot.
    """
    if wish.confidence is not None and not 0 < wish.confidence <= 1:
        raise InputError(f"--exit-confidence: expected a probability above 0, at most 1, got {wish.confidence:g}")
    if wish.confidence is not None and wish.accuracy is not None:
        raise InputError("predict: expected --exit-confidence or --exit-accuracy, got both; leave one out")
    if wish.accuracy is not None and not 0 < wish.accuracy <= 1:
        raise InputError(f"--exit-accuracy: expected a share above 0, at most 1, got {wish.accuracy:g}")
    if wish.asked is None:
        return
    if not wish.asked:
        raise InputError("--exit-stages: expected stages, got none; name some, or leave it out to ask all")
    if wish.confidence is None:
        raise InputError("--exit-stages: expected --exit-confidence beside it, got none; say how sure they have to be")
    if wrong := [stage for stage in wish.asked if not 0 <= stage < last]:
        raise InputError(f"--exit-stages: expected stages before the last, {last}, got {wrong[0]}")


def _policy_for(known: dict[str, Any], accuracy: float, last: int) -> Policy | None:
    """The one that computes least and keeps the accuracy on validation; None: the last stage alone does.

    Raises:
        InputError: none does.
    """
    if known["last_stage"] != last:
        raise InputError(
            f"--exit-accuracy: validation was measured with stage {known['last_stage']} as the last one, and {last} was"
            f" to be; take --stage {known['last_stage']}"
        )
    enough = [point for point in known["curve"] if point["validation"]["accuracy"] >= accuracy]
    if not enough:
        best = max(point["validation"]["accuracy"] for point in known["curve"])
        raise InputError(
            f"--exit-accuracy: expected at most {best:.6f}, the best on validation, got {accuracy:g}; choose less"
        )
    cheapest = min(enough, key=lambda point: point["validation"]["cost"])
    if cheapest["confidence"] is None:
        return None
    return Policy(confidence=cheapest["confidence"], asked=tuple(cheapest["asked"]))


def _pieces(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _batch(
    exits: Exits,
    images: Countable,
    indices: range,
    last: int,
    policy: Policy | None,
    temperatures: Sequence[float] | None,
    resize: int | None,
) -> pa.RecordBatch:
    read = exits.normalized(read_images(images, indices, info=exits.info, resize=resize))
    answers = exits.answer(read, last=last, policy=policy, temperatures=temperatures)
    names = np.array(exits.info.class_names, dtype=object)[answers.classes]
    columns = [
        pa.array([images.where(index) for index in indices]),
        pa.array(answers.classes),
        pa.array(names, type=pa.string()),
        pa.array(answers.probabilities),
        pa.array(answers.stages),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
