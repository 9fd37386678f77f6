"""A finished run, taken up again: measure its stages, write its weights as one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import save_file

from distblock import local
from distblock.config import ChannelConfig, Config
from distblock.data.dataset import DataInfo
from distblock.data.opening import open_data
from distblock.errors import InputError
from distblock.learning.blueprint import Build, Problem, draw_blueprint
from distblock.learning.host import HostSpec
from distblock.metrics.accounting import Account, PassSums
from distblock.runs import RunDirectory, read_weights, read_weights_manifest
from distblock.schedule.course import AllAtOnce
from distblock.schedule.stream import evaluation_pass


def evaluate_run(
    directory: RunDirectory,
    *,
    part: Literal["validation", "test"] = "test",
    path: str | None = None,
    model: Build | None = None,
    dataset: Callable[..., Any] | None = None,
) -> tuple[list[PassSums], int]:
    """Measure every stage of a run again, in this process, with the microbatches of the run.

    Args:
        directory: the run.
        part: which part of the data.
        path: where the data lies now, if it has moved.
        model, dataset: your own, where the run was given them in Python.

    Returns:
        The sums of each stage's pass, and the stage that the run chose on validation.

    Raises:
        InputError: the run, its weights or its data cannot be used.
    """
    config = in_one_piece(directory.read_config(), path)
    spec, manifest = finished_spec(directory, config, model)
    info = DataInfo.from_json(manifest["data"])
    data = open_data(config.data, seed=config.seed, dataset=dataset, info=info)
    num_stages = spec.blueprint.num_stages
    account = Account(num_stages=num_stages)
    num_samples = data.info.num_test if part == "test" else data.info.num_validation
    items = evaluation_pass(part, num_samples, config.data.eval_microbatch)
    local.execute(spec, data, AllAtOnce(lambda _: items), account, initial=read_weights(directory))
    passes = [account.stage_pass(stage, 0, part) for stage in range(num_stages)]
    return [sums for sums in passes if sums is not None], manifest["best_stage"]


def finished_spec(directory: RunDirectory, config: Config, model: Build | None) -> tuple[HostSpec, Mapping[str, Any]]:
    """What builds all stages of a finished run in this process, and what is known of its weights.

    Raises:
        InputError: the run has no weights, or its network cannot be built.
    """
    manifest = read_weights_manifest(directory)
    info = DataInfo.from_json(manifest["data"])
    problem = Problem(in_channels=info.channels, image_size=info.image_size, num_classes=info.num_classes)
    blueprint = draw_blueprint(config, problem, build=model)
    spec = HostSpec(
        run=directory.name,
        config=config,
        problem=problem,
        blueprint=blueprint,
        stages=range(blueprint.num_stages),
        steps_per_epoch=1,
        inputs=None,
        build=model,
    )
    return spec, manifest


def export_run(
    directory: RunDirectory, *, to: str | Path, stage: int | None = None, classifier: bool = False
) -> tuple[int, int]:
    """Write the network's weights up to a stage as one safetensors file, under the network's own names.

    Args:
        directory: the run.
        to: the file.
        stage: the last stage to include; default: the one the run chose on validation.
        classifier: include that stage's auxiliary classifier, under ``classifier.``.

    Returns:
        How many tensors were written, and the last stage.

    Raises:
        InputError: the run has no weights, or no such stage.
    """
    manifest = read_weights_manifest(directory)
    last = manifest["best_stage"] if stage is None else stage
    state = read_weights(directory)
    if last not in state:
        raise InputError(f"stage: expected 0 to {max(state)}, got {last}")
    tensors = {}
    for index in range(last + 1):
        for name, array in state[index].items():
            whose, _, own = name.partition(".")
            if whose == "network":
                tensors[own] = array
            elif classifier and index == last:
                tensors[name] = array
    metadata = {"class_names": ",".join(manifest["data"]["class_names"]), "last_stage": str(last)}
    try:
        save_file(tensors, str(to), metadata=metadata)
    except OSError as error:
        raise InputError(f"{to}: cannot be written: {error}") from None
    return len(tensors), last


def in_one_piece(config: Config, path: str | None) -> Config:
    """A run's settings for the plain loop on this machine, with the data where they lie now."""
    data = config.data if path is None else config.data.model_copy(update={"path": path})
    resources = config.resources.model_copy(update={"workers": None, "gpus_per_worker": 0.0})
    model = config.model.model_copy(update={"init_from": None, "freeze_before": 0, "grow_classes": False})
    precision = "bf16" if config.precision == "fp16" else config.precision
    update = {
        "executor": "local",
        "data": data,
        "resources": resources,
        "model": model,
        "precision": precision,
        "channel": _without_losses(config.channel),
    }
    return config.model_copy(update=update)


def _without_losses(channel: ChannelConfig) -> ChannelConfig:
    """Casts as they were trained with; what saves bytes alone is of no use to a network in one piece."""
    kept = {edge: codec for edge, codec in channel.edge_codecs.items() if codec in channel.CASTS}
    codec = channel.codec if channel.codec in channel.CASTS else "fp32"
    return channel.model_copy(update={"codec": codec, "edge_codecs": kept})
