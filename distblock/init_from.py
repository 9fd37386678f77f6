"""``model.init_from``: going on from an earlier run's weights, perhaps with new data and new classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distblock import runs
from distblock.config import Config
from distblock.data.dataset import DataInfo
from distblock.data.opening import open_classes
from distblock.errors import InputError
from distblock.learning.blueprint import Blueprint
from distblock.learning.initial import Classes, initial_state
from distblock.runs import RunDirectory, State

FILE = ".safetensors"
"""How a file of weights ends; anything else is a run."""

SETTLED = ("absent_classes", "mean", "std")
"""Settings of the data that follow from the earlier run."""


def settled(config: Config, *, dataset: Callable[..., Any] | None = None) -> Config:
    """Write out what follows from the earlier run, so that this one is complete without it.

    Frozen blocks have to see images as they were trained on them, and classes that the data do not have any more stay
    outputs where they are to be kept.

    Args:
        config: the settings.
        dataset: the user's own data, where they were given in Python.

    Raises:
        InputError: the earlier run cannot be used.
    """
    model, data = config.model, config.data
    if model.init_from is None or not (model.freeze_before or model.grow_classes):
        return config
    if model.init_from.endswith(FILE):
        if model.grow_classes:
            raise InputError(
                f"model.grow_classes: expected model.init_from to be a run, whose classes are known by name, got"
                f" {model.init_from}; name the run's directory"
            )
        if data.mean is None:
            raise InputError(
                f"model.freeze_before: expected data.mean and data.std beside {model.init_from}, which does not say how"
                " the images were normalized that its blocks were trained on; set both, or name the run's directory"
            )
        return config
    before = _info(model.init_from)
    update: dict[str, Any] = {}
    if data.mean is None:
        update |= {"mean": before.mean, "std": before.std}
    if model.grow_classes:
        _, names = open_classes(data.model_copy(update={"absent_classes": ()}), dataset)
        known = dict.fromkeys((*before.class_names, *data.absent_classes))
        update["absent_classes"] = tuple(name for name in known if name not in names)
    return config.model_copy(update={"data": data.model_copy(update=update)})


def as_settled(config: Config, before: Config) -> Config:
    """A run that goes on keeps what was written out when it began."""
    if not (before.model.freeze_before or before.model.grow_classes):
        return config
    update = {key: getattr(before.data, key) for key in SETTLED if not getattr(config.data, key)}
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def initial_weights(config: Config, info: DataInfo, blueprint: Blueprint) -> State:
    """The weights to start from; none: as they are initialized.

    Raises:
        InputError: they cannot be read, or are of another network.
    """
    location = config.model.init_from
    if location is None:
        return {}
    weights = read_initial(location)
    if location.endswith(FILE):
        return initial_state(weights, blueprint)
    return initial_state(weights, blueprint, classes=Classes(before=_info(location).class_names, now=info.class_names))


def read_initial(location: str) -> Mapping[str, Any]:
    """Weights to start from: a run directory's final ones, or a safetensors file with the network's own names.

    Returns:
        Arrays by name: ``network.<name>`` and ``classifier.<stage>.<name>``.

    Raises:
        InputError: there is nothing there, or it is damaged.
    """
    if location.endswith(FILE):
        folder, _, name = location.rpartition("/")
        content = RunDirectory.at(folder or ".").read(name)
        return {f"network.{key}": array for key, array in runs.load_weights(content, origin=location).items()}
    return runs.flatten(runs.read_weights(RunDirectory.at(location)))


def _info(location: str) -> DataInfo:
    return DataInfo.from_json(runs.read_weights_manifest(RunDirectory.at(location))["data"])
