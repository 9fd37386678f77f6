"""``distblock evaluate RUN --early-exit``: accuracy against compute, per class, and which class is taken for which.

Which stages are asked, and how sure they have to be, is chosen on the validation part: the curve over it is what
``predict --exit-accuracy`` reads. The test part is passed through in the same ways, counted in operations and measured
in seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distblock.data.dataset import DataSet
from distblock.data.opening import open_data
from distblock.evaluation import in_one_piece
from distblock.inference.exits import Exits, check_last, fit_temperature, load_exits, probable
from distblock.inference.policies import Policy, Seen, measure, search
from distblock.learning.blueprint import Build
from distblock.messages import Part
from distblock.runs import EARLY_EXIT, RunDirectory
from distblock.schedule.stream import evaluation_pass

TIMED_SAMPLES = 1024
"""Samples whose prediction is timed, in each way in turn."""

TIMED_ROUNDS = 5


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
        ``temperatures`` of all stages; ``stage_costs`` and ``classifier_costs``: shares of what the last stage alone
        takes; ``curve``: a point a policy, cheapest first and the last stage alone at the end, with ``confidence`` and
        ``asked`` (None, none: alone), ``validation`` and ``test`` (see `distblock.inference.policies.measure`),
        ``seconds_per_image`` and ``time`` (of the last stage's alone); ``classes``: accuracy of each with the last
        stage; ``confusion``: rows are labels.

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
    costs = exits.costs()
    validation = _seen(logits, labels, temperatures)
    test = _seen(*_logits(exits, data, "test", batch), temperatures)
    policies = [*search(validation, last=last, costs=costs), None]
    times = _timed(exits, data, batch, last, temperatures, policies)
    whole = costs.until(last, ())
    found = {
        "last_stage": last,
        "class_names": list(exits.info.class_names),
        "temperatures": temperatures,
        "stage_costs": [cost / whole for cost in costs.stages],
        "classifier_costs": [cost / whole for cost in costs.classifiers],
        "curve": [
            {
                "confidence": None if policy is None else policy.confidence,
                "asked": [] if policy is None else policy.asked,
                "validation": measure(validation, policy, last=last, costs=costs),
                "test": measure(test, policy, last=last, costs=costs),
                **taken,
            }
            for policy, taken in zip(policies, times, strict=True)
        ],
        **_by_class(test, last, exits.info.num_classes),
    }
    directory.write_json(EARLY_EXIT, found)
    return found


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


def _seen(logits: Sequence[Tensor], labels: np.ndarray, temperatures: Sequence[float]) -> Seen:
    pairs = [probable(each, temperature) for each, temperature in zip(logits, temperatures, strict=True)]
    return Seen(
        probabilities=np.stack([probabilities for probabilities, _ in pairs]),
        classes=np.stack([classes for _, classes in pairs]),
        labels=labels,
    )


def _timed(
    exits: Exits,
    data: DataSet,
    batch: int,
    last: int,
    temperatures: Sequence[float],
    policies: Sequence[Policy | None],
) -> list[dict[str, float]]:
    """Seconds an image, each way, the last stage alone at the end; one thread, decoded images; rounds interleaved,
    medians."""
    images: list[Tensor] = []
    for own, _ in microbatches(data, "test", batch):
        images.append(own)
        if sum(map(len, images)) >= TIMED_SAMPLES:
            break
    count = sum(map(len, images))
    taken: list[list[float]] = [[] for _ in policies]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(TIMED_ROUNDS):
            for policy, own_s in zip(policies, taken, strict=True):
                begun_s = time.perf_counter()
                for own in images:
                    exits.answer(own, last=last, policy=policy, temperatures=temperatures)
                own_s.append((time.perf_counter() - begun_s) / count)
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "seconds_per_image": statistics.median(seconds),
            "time": statistics.median(own / whole for own, whole in zip(seconds, taken[-1], strict=True)),
        }
        for seconds in taken
    ]


def _by_class(seen: Seen, last: int, num_classes: int) -> dict[str, Any]:
    """Accuracy of each class with the last stage alone (None: no sample), and the confusion matrix, rows are labels."""
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (seen.labels, seen.classes[last]), 1)
    totals = confusion.sum(axis=1)
    own = [float(confusion[k, k] / totals[k]) if totals[k] else None for k in range(num_classes)]
    return {"classes": own, "confusion": confusion.tolist()}
