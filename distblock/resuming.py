"""Going on with a run that was cut short: from its newest whole checkpoint, perhaps on other workers or stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from distblock.config import Config
from distblock.errors import InputError
from distblock.learning.blueprint import Blueprint
from distblock.learning.repartition import repartition
from distblock.runs import HOPS, METRICS, SUMMARY, RunDirectory
from distblock.runs.checkpoints import Restored, read_newest

FREE = (
    "run_dir",
    "resume",
    "address",
    "executor",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.memory_bytes",
    "regime.max_time_s",
    "regime.cache_dir",
    "regime.cache_bytes",
    "resources.",
    "channel.auto_codecs",
    "channel.transport",
    "channel.max_in_flight",
    "channel.max_in_flight_bytes",
    "recovery.",
    "checkpoint.",
    "metrics.",
)
"""Settings that do not change what is trained."""

CUTS = ("model.stages", "model.cuts")


def check_changes(before: Config, now: Config) -> None:
    """See that a run goes on as what it was.

    Raises:
        InputError: a setting has been changed that says what is trained; it is named.
    """
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    is_cut_elsewhere = any(old.get(cut) != new.get(cut) for cut in CUTS)
    for key, value in new.items():
        if value == old.get(key) or key.startswith(FREE):
            continue
        # Edges are named by stages.
        if key.startswith("channel.edge_codecs.") and is_cut_elsewhere:
            continue
        # Caches know no replicas.
        if key == "replicas" and not now.regime.one_by_one:
            continue
        if key not in CUTS:
            raise InputError(
                f"resume: {key}: expected {old.get(key)}, as the run began, got {value}; leave it out, or begin another"
                " run with --model.init-from"
            )
        if now.regime.one_by_one or now.regime.patience is not None:
            why = (
                "stages are judged one by one" if now.regime.patience is not None else "stages are at different points"
            )
            raise InputError(
                f"resume: {key}: expected {old.get(key)}, got {value}: in the {now.regime.name} regime"
                f"{' with patience' if now.regime.patience is not None else ''} {why}, and cannot be cut elsewhere"
            )


def restore(
    directory: RunDirectory, *, blueprint: Blueprint, note: Callable[[str], None]
) -> tuple[Restored | None, bool]:
    """The newest whole checkpoint, as the stages of this blueprint need it.

    Args:
        directory: the run.
        blueprint: where the network is cut now.
        note: is told what cannot be used, and what changes.

    Returns:
        The checkpoint, or None: the run begins anew; and whether the network is cut elsewhere now.

    Raises:
        InputError: no checkpoint is whole, or they are of another network.
    """
    restored = read_newest(directory, note=note)
    if restored is None:
        return None, False
    manifest = restored.manifest
    if tuple(manifest["block_names"]) != blueprint.block_names:
        raise InputError(
            f"{directory.root}: expected a checkpoint of this network with {len(blueprint.block_names)} blocks, got one"
            f" of {len(manifest['block_names'])} blocks; check model.name"
        )
    _check_shapes(restored, blueprint)
    cuts = tuple(manifest["cuts"])
    if cuts == tuple(blueprint.partition.cuts):
        return restored, False
    states, renewed = repartition(restored.states, cuts=cuts, blueprint=blueprint)
    begins = (
        f"stages {renewed} begin with a new auxiliary classifier" if renewed else "every stage keeps its classifier"
    )
    note(
        f"cut before blocks {list(blueprint.partition.cuts)} instead of {list(cuts)}: weights and optimizer state go"
        f" with their blocks; {begins}; figures of stages and edges are counted anew, those so far are in"
        f" {before(restored.number, METRICS)} and {before(restored.number, HOPS)}"
    )
    return replace(restored, states=states), True


def before(number: int, name: str) -> str:
    """What a log is called that ends with a checkpoint."""
    return f"before-{number:06d}-{name}"


def check_not_ended(directory: RunDirectory) -> None:
    """See that there is something to go on with.

    Raises:
        InputError: the run has ended.
    """
    if directory.exists(SUMMARY):
        raise InputError(
            f"{directory.root}: the run has ended already; expected one that was cut short; begin another with"
            " --model.init-from to train on"
        )


def _check_shapes(restored: Restored, blueprint: Blueprint) -> None:
    expected = {name: shape for shapes in blueprint.state_shapes for name, shape in shapes.items()}
    for state in restored.states.values():
        for key, array in state.items():
            what, _, name = key.partition("/")
            if what == "weight" and name.startswith("network.") and array.shape != expected.get(name):
                raise InputError(
                    f"checkpoint {restored.number}: {name}: expected shape {expected.get(name)}, got {array.shape}: it"
                    " is of another network; check model.name and model.width"
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
