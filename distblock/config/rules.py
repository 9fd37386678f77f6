"""What settings of several sections ask of each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distblock.config.whole import Config


def check_together(config: Config) -> None:
    """Rules that span sections.

    Raises:
        ValueError: one is broken; the message is for the user.
    """
    if config.metrics.port is not None and not config.metrics.record:
        raise ValueError(
            f"metrics.port: expected none without metrics.record, got {config.metrics.port}: there would be nothing to"
            " serve; leave one of the two out"
        )
    if config.precision == "fp16" and config.resources.gpus_per_worker == 0:
        raise ValueError(
            "precision: expected fp32 or bf16 on a CPU, got fp16; set resources.gpus_per_worker or choose bf16"
        )
    if config.model.cuts is not None and config.model.stages != "blocks":
        raise ValueError(
            f"model: expected stages or cuts, got both stages={config.model.stages} and cuts={list(config.model.cuts)};"
            " leave one out"
        )
    if config.regime.name == "end-to-end" and (
        config.model.cuts is not None or config.model.stages not in ("blocks", 1)
    ):
        raise ValueError(
            "regime.name: end-to-end trains the whole network as one stage, but model.cuts or model.stages asks for"
            " more; leave them out"
        )
    _check_regime(config)
    _check_start(config)
    _check_replicas(config)
    _check_codecs(config)
    if (
        config.objective.multiplier_step
        and config.objective.multiplier_start is None
        and math.isinf(config.objective.tau)
    ):
        raise ValueError(
            "objective.multiplier_start: expected where lambda begins, since objective.tau is inf, got nothing; set it"
            " or a finite tau"
        )
    if config.address is not None and config.address.startswith("ray://"):
        raise ValueError(
            f"address: expected host:port of the cluster, got {config.address}; Ray Client moves objects a hundred"
            " times slower than the object store: run this command on a node of the cluster, with --address auto, or"
            " send it there with distblock submit"
        )
    if config.resources.cpus_per_worker == 0 and config.resources.gpus_per_worker == 0:
        raise ValueError(
            "resources: expected CPUs or GPUs for a worker, got cpus_per_worker 0 and gpus_per_worker 0; set one"
        )
    if config.resources.nodes and config.resources.strategy.startswith("STRICT"):
        raise ValueError(
            f"resources.strategy: expected PACK or SPREAD beside resources.nodes, which say where each worker is, got"
            f" {config.resources.strategy}; leave it out"
        )
    needs_path = config.data.name not in ("digits",) and ":" not in config.data.name
    if needs_path and config.data.path is None:
        raise ValueError(f"data.path: expected the folder of {config.data.name}, got nothing; set --data.path")


def _check_start(config: Config) -> None:
    """What goes on from earlier weights, and which classes there are."""
    model, data = config.model, config.data
    for key in ("freeze_before", "grow_classes"):
        if getattr(model, key) and model.init_from is None:
            raise ValueError(
                f"model.{key}: expected model.init_from with it, the run to go on from, got {getattr(model, key)} alone"
            )
    if model.freeze_before and (config.regime.name == "end-to-end" or model.stages == "auto"):
        raise ValueError(
            f"model.freeze_before: expected stages that are known, got {model.freeze_before} with"
            f" {'the end-to-end regime' if config.regime.name == 'end-to-end' else 'model.stages auto'}; leave one out"
        )
    if (data.mean is None) != (data.std is None):
        raise ValueError(f"data.mean: expected it with data.std, got {data.mean} and {data.std}; set both or none")
    if len(data.train_classes) == 1 and model.init_from is None:
        raise ValueError(
            f"data.train_classes: expected two or more, or model.init_from, got {data.train_classes[0]} alone: there"
            " would be nothing to tell it from"
        )
    for key in ("classes", "train_classes", "absent_classes"):
        names = getattr(data, key)
        if len(set(names)) < len(names):
            raise ValueError(f"data.{key}: expected each name once, got {' '.join(names)}")


def _check_replicas(config: Config) -> None:
    """What goes together with several workers a stage."""
    regime = config.regime
    if config.model.sync_batchnorm and (config.executor == "local" or config.resources.gpus_per_worker == 0):
        raise ValueError(
            "model.sync_batchnorm: expected workers with GPUs, which alone can, got"
            f" executor {config.executor} with gpus_per_worker {config.resources.gpus_per_worker:g}; leave it out"
        )
    if config.replicas == 1:
        return
    if regime.name == "asynchronous":
        raise ValueError(
            f"replicas: expected 1 in the asynchronous regime, got {config.replicas}; what its workers train on again"
            " depends on their own pace, and replicas go in step: choose parallel, or leave replicas out"
        )
    if regime.inputs == "cache":
        raise ValueError(
            f"replicas: expected 1 with regime.inputs cache, got {config.replicas}; a shuffled share lies in all"
            " replicas' caches: choose frozen or auto, or leave replicas out"
        )
    if config.resources.gpus_per_worker % 1:
        raise ValueError(
            f"replicas: expected whole GPUs a worker, got {config.replicas} replicas with gpus_per_worker"
            f" {config.resources.gpus_per_worker:g}; NCCL joins no two processes on one GPU: use fewer replicas"
        )
    if config.data.train_microbatch < config.replicas:
        raise ValueError(
            f"replicas: expected at most one a sample of a microbatch, got {config.replicas} replicas for microbatches"
            f" of {config.data.train_microbatch}; use fewer, or larger microbatches"
        )


def _check_codecs(config: Config) -> None:
    """What the regime and the partition ask of codecs."""
    channel, regime = config.channel, config.regime
    if config.model.stages == "auto" and channel.edge_codecs:
        raise ValueError(
            "channel.edge_codecs: expected none with model.stages auto, which says where edges are, got"
            f" {min(channel.edge_codecs)}; set channel.codec, or cut the network yourself"
        )
    if channel.codec == "auto" and regime.one_by_one:
        raise ValueError(
            f"channel.codec: auto is for edges that activations cross while all stages train, in the parallel or the"
            f" asynchronous regime, got {regime.name}; choose fp32, fp16 or bf16"
        )
    remembering = [codec for codec in channel.codecs if codec in channel.REMEMBERING]
    if remembering and (regime.name != "parallel" or config.replicas > 1):
        raise ValueError(
            f"channel.codec: {remembering[0]} remembers what crossed before, so all of it has to cross, in one order:"
            f" expected the parallel regime and one replica, got {regime.name} and {config.replicas}; choose int8, int4"
            " or a cast"
        )
    lossy = [codec for codec in channel.codecs if codec not in channel.CASTS]
    if lossy and regime.one_by_one and regime.inputs != "frozen":
        raise ValueError(
            f"channel.codec: caches of the {regime.name} regime hold fp32, fp16 or bf16, got {lossy[0]}; set"
            " --regime.inputs frozen, or choose a cast"
        )


def _check_regime(config: Config) -> None:
    """Settings that belong to some regimes alone."""
    regime = config.regime
    if config.model.stages == "auto" and regime.name not in ("parallel", "asynchronous"):
        raise ValueError(
            f"model.stages: auto plans for stages that all compute at once, in the parallel or the asynchronous regime,"
            f" got {regime.name}; set a number, or blocks"
        )
    only_one_by_one = {"extra_epochs": 0, "inputs": "auto", "cache_dir": None}
    for key, default in only_one_by_one.items():
        if getattr(regime, key) != default and not regime.one_by_one:
            raise ValueError(
                f"regime.{key}: expected its default in the {regime.name} regime, got {getattr(regime, key)}; it"
                " belongs to sequential, multi-lap and wavefront"
            )
    if regime.name == "asynchronous" and config.executor == "local":
        raise ValueError(
            "regime.name: asynchronous takes workers, but executor is local; leave executor out or choose parallel"
        )
    if regime.laps > 1 and regime.name not in ("multi-lap", "wavefront"):
        raise ValueError(
            f"regime.laps: expected 1 in the {regime.name} regime, got {regime.laps}; choose multi-lap or wavefront"
        )
    if regime.inputs == "cache" and config.data.augment:
        raise ValueError(
            "regime.inputs: a cache holds one version of each image, but data.augment asks for"
            f" {list(config.data.augment)}; choose frozen or auto, or leave augmentation out"
        )
    if config.regime.patience is not None and config.regime.name == "end-to-end":
        raise ValueError("regime.patience: expected none in the end-to-end regime, whose stages cannot stop alone")
