"""``distblock evaluate RUN --early-exit``: accuracy against compute, per class, and which class is taken for which.

Confidences are chosen on the validation part: the curve over it is what ``predict --exit-accuracy`` reads. The test
part is passed through with the same confidences, counted in operations and measured in seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distblock.data.dataset import DataSet, open_data
from distblock.evaluation import in_one_piece
from distblock.exits import Exits, check_last, fit_temperature, load_exits, probable
from distblock.learning.blueprint import Build
from distblock.messages import Part
from distblock.runs import EARLY_EXIT, RunDirectory
from distblock.schedule.stream import evaluation_pass

CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)
"""That are tried; at 1 hardly any image is answered before the last stage."""

TIMED_SAMPLES = 1024
"""Samples whose prediction is timed, with each confidence in turn."""

TIMED_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A part, as all stages see it: likeliest class and its probability, ``(stages, N)``; labels ``(N,)``."""

    classes: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray


def evaluate_early_exit(
    directory: RunDirectory,
    *,
    path: str | None = None,
    stage: int | None = None,
    model: Build | None = None,
    dataset: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Measure a run's early exits, and keep what was found beside it, as ``early_exit.json``.

    Args:
        directory: the run.
        path: where the data lies now, if it has moved.
        stage: the last that answers; default: the one chosen on validation.
        model, dataset: your own, where the run was given them in Python.

    Returns:
        ``temperatures`` of all stages; ``validation`` and ``test``: a point a confidence, with ``accuracy``, ``cost``
        (of the last stage's) and ``answered`` (share of each stage); ``timed``: ``seconds_per_image`` and ``time`` (of
        the last stage's) by confidence; ``classes``: accuracy of each with the last stage; ``confusion``: rows are
        labels.

    Raises:
        InputError: the run, its weights or its data cannot be used.
    """
    config = in_one_piece(directory.read_config(), path)
    exits = load_exits(directory, config=config, model=model)
    last = check_last(exits, stage)
    data = open_data(config.data, seed=config.seed, dataset=dataset, info=exits.info)
    batch = config.data.eval_microbatch
    logits, labels = _logits(exits, data, "validation", batch)
    temperatures = [fit_temperature(each, torch.from_numpy(labels)) for each in logits]
    operations = exits.costs()
    costs = [cost / operations[last] for cost in operations]
    validation = _seen(logits, labels, temperatures)
    test = _seen(*_logits(exits, data, "test", batch), temperatures)
    found = {
        "last_stage": last,
        "class_names": list(exits.info.class_names),
        "temperatures": temperatures,
        "stage_costs": costs,
        "validation": _curve(validation, last, costs),
        "test": _curve(test, last, costs),
        "timed": _timed(exits, data, batch, last, temperatures),
        **_by_class(test, last, exits.info.num_classes),
    }
    directory.write_json(EARLY_EXIT, found)
    return found


def read_early_exit(directory: RunDirectory) -> dict[str, Any] | None:
    """What `evaluate_early_exit` has kept; None: it has not run."""
    return directory.read_json(EARLY_EXIT) if directory.exists(EARLY_EXIT) else None


def _logits(exits: Exits, data: DataSet, part: Part, batch: int) -> tuple[list[Tensor], np.ndarray]:
    found: list[list[Tensor]] = [[] for _ in exits.stages]
    labels = []
    for images, own in microbatches(data, part, batch):
        labels.append(own)
        for stage, logits in zip(found, exits.logits(images), strict=True):
            stage.append(logits)
    return [torch.cat(each) for each in found], np.concatenate(labels)


def microbatches(data: DataSet, part: Part, batch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """A part's images, normalized, and their labels, ``batch`` at a time, in evaluation order."""
    count = data.info.num_test if part == "test" else data.info.num_validation
    for item in evaluation_pass(part, count, batch):
        if item is not None:
            images, labels = data.microbatch(item)
            yield torch.from_numpy(images), labels


def _seen(logits: Sequence[Tensor], labels: np.ndarray, temperatures: Sequence[float]) -> _Seen:
    pairs = [probable(each, temperature) for each, temperature in zip(logits, temperatures, strict=True)]
    return _Seen(
        probabilities=np.stack([probabilities for probabilities, _ in pairs]),
        classes=np.stack([classes for _, classes in pairs]),
        labels=labels,
    )


def _curve(seen: _Seen, last: int, costs: Sequence[float]) -> list[dict[str, Any]]:
    """A point a confidence."""
    points = []
    for confidence in CONFIDENCES:
        sure = seen.probabilities[: last + 1] >= confidence
        sure[last] = True
        stages = sure.argmax(axis=0)
        classes = seen.classes[stages, np.arange(len(stages))]
        points.append(
            {
                "confidence": confidence,
                "accuracy": float((classes == seen.labels).mean()),
                "cost": float(np.asarray(costs)[stages].mean()),
                "answered": [float((stages == stage).mean()) for stage in range(last + 1)],
            }
        )
    return points


def _timed(
    exits: Exits, data: DataSet, batch: int, last: int, temperatures: Sequence[float]
) -> list[dict[str, float | None]]:
    """Seconds an image, with each confidence; one thread, decoded images; rounds interleaved, medians."""
    images: list[Tensor] = []
    for own, _ in microbatches(data, "test", batch):
        images.append(own)
        if sum(map(len, images)) >= TIMED_SAMPLES:
            break
    count = sum(map(len, images))
    cases = [None, *CONFIDENCES]
    taken: dict[float | None, list[float]] = {case: [] for case in cases}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(TIMED_ROUNDS):
            for case in cases:
                begun_s = time.perf_counter()
                for own in images:
                    exits.answer(own, last=last, confidence=case, temperatures=temperatures)
                taken[case].append((time.perf_counter() - begun_s) / count)
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "confidence": case,
            "seconds_per_image": statistics.median(seconds),
            "time": statistics.median(own / whole for own, whole in zip(seconds, taken[None], strict=True)),
        }
        for case, seconds in taken.items()
    ]


def _by_class(seen: _Seen, last: int, num_classes: int) -> dict[str, Any]:
    """Accuracy of each class with the last stage alone (None: no sample), and the confusion matrix, rows are labels."""
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (seen.labels, seen.classes[last]), 1)
    totals = confusion.sum(axis=1)
    own = [float(confusion[k, k] / totals[k]) if totals[k] else None for k in range(num_classes)]
    return {"classes": own, "confusion": confusion.tolist()}
