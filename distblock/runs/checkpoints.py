"""A run's checkpoints: each a bundle with every stage's state at one point of the streams, and the sums up to there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save as save_safetensors

from distblock.errors import InputError
from distblock.runs.bundle import MANIFEST, Bundle, read_bundle, write_bundle
from distblock.runs.directory import RunDirectory, parquet_bytes
from distblock.runs.weights import load_weights, stage_file
from distblock.schedule.position import Position
from distblock.schedule.saving import Arrays, CacheFiles

FOLDER = "checkpoints"
ACCOUNT = "account.json"
HOPS = "hops.parquet"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What had been recorded of a run at a checkpoint.

    Attributes:
        account: the sums, see `distblock.metrics.accounting.Account.to_json`.
        hops: rows of hops.parquet.
        elapsed_s: seconds of the run.
        metrics: figures by which checkpoints can be told apart.
    """

    account: Mapping[str, Any]
    hops: pa.Table
    elapsed_s: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is there.

    Attributes:
        number: counted from 1 over the run.
        metrics: figures by which it can be told from others.
    """

    number: int
    metrics: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Its folder in the run's directory."""
        return folder_of(self.number)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A checkpoint that has been read.

    Attributes:
        number: which.
        position: how far the run had come.
        states: training state of each stage.
        caches: what was on disk.
        recorded: the sums.
        manifest: all that was written about it.
    """

    number: int
    position: Position
    states: Mapping[int, Arrays]
    caches: CacheFiles
    recorded: Recorded
    manifest: Mapping[str, Any]


def folder_of(number: int) -> str:
    """A checkpoint's folder in the run's directory."""
    return f"{FOLDER}/{number:06d}"


def write_checkpoint(
    directory: RunDirectory,
    number: int,
    *,
    states: Iterable[tuple[int, Arrays]],
    position: Position,
    caches: CacheFiles,
    recorded: Recorded,
    about: Mapping[str, Any],
) -> Checkpoint:
    """Write a checkpoint.

    Args:
        directory: the run.
        number: which.
        states: training state of each stage in turn; one is held at a time.
        position: how far the run has come.
        caches: what is on disk.
        recorded: the sums up to there.
        about: what else there is to say, of the network and the data.

    Raises:
        OSError: the storage does not take it.
    """

    def files() -> Iterator[tuple[str, bytes]]:
        for stage, arrays in states:
            yield stage_file(stage), save_safetensors(dict(arrays))
        yield ACCOUNT, json.dumps(recorded.account).encode()
        yield HOPS, parquet_bytes(recorded.hops)

    manifest = {
        **about,
        "number": number,
        "position": position.to_json(),
        "elapsed_s": recorded.elapsed_s,
        "metrics": recorded.metrics,
        "caches": {"folder": caches.folder, "sha256": caches.sha256, "opened": sorted(caches.opened)},
    }
    write_bundle(directory, folder_of(number), files(), manifest)
    return Checkpoint(number=number, metrics=recorded.metrics)


def numbers(directory: RunDirectory) -> list[int]:
    """Numbers of the folders of checkpoints, whole or not, in order."""
    return [int(name) for name in directory.folders(FOLDER) if name.isdigit()]


def list_checkpoints(directory: RunDirectory) -> list[Checkpoint]:
    """Checkpoints whose manifests can be read, in order."""
    found = []
    for number in numbers(directory):
        try:
            manifest = read_bundle(directory, folder_of(number)).manifest
        except InputError:
            continue
        found.append(Checkpoint(number=number, metrics=manifest["metrics"]))
    return found


def read_newest(directory: RunDirectory, *, note: Callable[[str], None]) -> Restored | None:
    """The newest checkpoint that is whole; None if there is none at all.

    Args:
        directory: the run.
        note: is told of those that are not.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    tried = []
    for number in reversed(numbers(directory)):
        # One without a manifest was never finished: it does not exist.
        if not directory.exists(f"{folder_of(number)}/{MANIFEST}"):
            continue
        try:
            return _read(read_bundle(directory, folder_of(number)))
        except InputError as error:
            tried.append(str(error))
            note(f"checkpoint {number} cannot be used: {error}")
    if tried:
        raise InputError(f"{directory.path(FOLDER)}: expected a whole checkpoint, got {len(tried)} damaged: {tried[0]}")
    return None


def _read(bundle: Bundle) -> Restored:
    manifest = bundle.manifest
    states = {
        stage: load_weights(bundle.read(name), origin=bundle.directory.path(f"{bundle.folder}/{name}"))
        for stage in range(len(manifest["cuts"]) + 1)
        if (name := stage_file(stage)) in bundle.files
    }
    caches = manifest["caches"]
    return Restored(
        number=manifest["number"],
        position=Position.from_json(manifest["position"]),
        states=states,
        caches=CacheFiles(folder=caches["folder"], sha256=caches["sha256"], opened=frozenset(caches["opened"])),
        recorded=Recorded(
            account=json.loads(bundle.read(ACCOUNT)),
            hops=pq.read_table(pa.BufferReader(bundle.read(HOPS))),
            elapsed_s=manifest["elapsed_s"],
            metrics=manifest["metrics"],
        ),
        manifest=manifest,
    )


def to_remove(
    checkpoints: Sequence[Checkpoint], *, num_to_keep: int | None, score: str | None, order: Literal["max", "min"]
) -> list[Checkpoint]:
    """Which to remove: all but the best, and the newest in any case.

    Args:
        checkpoints: in order.
        num_to_keep: how many stay; None: all.
        score: figure that tells the best, see `figure`; None: the newest are the best.
        order: whether a large or a small figure is good; one that is not known is worst.
    """
    if num_to_keep is None or not checkpoints:
        return []

    def rank(checkpoint: Checkpoint) -> tuple[float, int]:
        value = None if score is None else figure(checkpoint.metrics, score)
        if value is None or math.isnan(value):
            return -math.inf, checkpoint.number
        return (value if order == "max" else -value), checkpoint.number

    *others, newest = checkpoints
    kept = sorted(others, key=rank)[len(others) - (num_to_keep - 1) :] if num_to_keep > 1 else []
    if len(others) < num_to_keep:
        kept = others
    return [checkpoint for checkpoint in others if checkpoint not in kept and checkpoint is not newest]


def figure(metrics: Mapping[str, Any], name: str) -> float | None:
    """A figure of a checkpoint by its dotted name: ``val_accuracy``, ``stages.3.val_loss``; None if it is not known."""
    value: Any = metrics
    for part in name.split("."):
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = None if value is None else value.get(part)
    return value
