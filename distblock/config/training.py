"""What is trained on what, and how: the sections that say which weights come out."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_serializer, model_validator

from distblock.config.section import ClassName, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class DataConfig(Section):
    """Which samples, in which pieces."""

    name: str = "digits"
    """digits, cifar10, cifar100, stl10, mnist, fashion-mnist, svhn, folder, parquet, or your own: package.module:f"""
    path: str | None = None
    """folder (or, for parquet, folder or any pyarrow.fs URI) that holds the data; not needed for digits"""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """class-balanced part of the training part to keep; validation and test parts stay whole"""
    classes: tuple[ClassName, ...] = ()
    """names of the classes to tell apart, in this order; samples of others are left out of all parts; default: all"""
    train_classes: tuple[ClassName, ...] = ()
    """of them, those that training samples are kept of; validation and test samples are of all; default: all"""
    per_class: PositiveInt | None = None
    """training samples of each class at most; default: all"""
    absent_classes: tuple[ClassName, ...] = ()
    """names of further classes that the network tells apart and the data have no samples of: see model.grow_classes"""
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = None
    """of each channel, of images scaled to 0..1; default: measured; with model.freeze_before: as the weights know it"""
    std: tuple[PositiveFloat, ...] | None = None
    """deviation of each channel; likewise"""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """share of the training set split off for validation, where the set has no validation part of its own"""
    augment: tuple[Literal["crop", "flip", "cutout"], ...] = ()
    """augmentations of training images, in this order; none by default"""
    image_size: PositiveInt | None = None
    """resize images to this side; default: as they are"""
    batch_size: PositiveInt = 64
    """samples a step"""
    microbatch_size: PositiveInt | None = None
    """samples that cross an edge at once; default: the batch"""
    eval_batch_size: PositiveInt | None = None
    """samples an evaluation microbatch; default: as in training"""
    workers: PositiveInt = 1
    """processes that decode and augment ahead of stage 0"""
    prefetch: PositiveInt = 4
    """parcels (channel.microbatches_per_call) each of them keeps ready"""
    memory_bytes: PositiveInt = 2 * 1024**3
    """most bytes of a Parquet part held at once; a larger one is shuffled in windows of row groups that fit"""

    @property
    def train_microbatch(self) -> int:
        """Samples of a training microbatch."""
        return min(self.microbatch_size or self.batch_size, self.batch_size)

    @property
    def eval_microbatch(self) -> int:
        """Samples of an evaluation microbatch."""
        return self.eval_batch_size or self.train_microbatch


class ModelConfig(Section):
    """Which network, and where it is cut."""

    name: str = "resnet8"
    """resnet8/14/20/32/44/56/110 (CIFAR), torchvision/<any ResNet, ResNeXt, Wide ResNet, VGG or Swin>,
    preact/<K>-<M> (the paper's K-M ResNets), or your own: package.module:function"""
    width: PositiveInt | None = None
    """channels of the first blocks of a CIFAR ResNet (default 16) or a K-M ResNet (default 256)"""
    stages: PositiveInt | Literal["blocks", "auto"] = "blocks"
    """blocks: one block a stage; a number: that many stages, balanced by counted cost; auto: those that distblock plan
    finds for resources.workers, or for this machine's cores"""
    cuts: tuple[PositiveInt, ...] | None = None
    """explicit cuts instead: the index of each stage's first block, from the second stage on"""
    classifier: Literal["conv", "linear", "mlp-sr"] = "conv"
    """auxiliary classifier of every stage"""
    initialization: Literal["auto", "orthogonal", "kaiming", "built"] = "auto"
    """how weights begin; built: as the network's function made them; auto: built for your own, else orthogonal"""
    gain: PositiveFloat = 0.1
    """gain of the orthogonal initialization"""
    init_from: str | None = None
    """a run directory, or a safetensors file, whose weights to start from"""
    freeze_before: Annotated[int, Field(ge=0)] = 0
    """stages before this one keep the blocks of init_from as they are; their classifiers alone go on learning"""
    grow_classes: bool = False
    """tell apart the classes of the run in init_from and those of the data: new ones get rows of their own in each
    classifier, old rows are kept"""
    sync_batchnorm: bool = False
    """BatchNorm normalizes by the samples of all replicas instead of each replica's own; GPUs only"""
    channels_last: bool = False
    """keep activations in channels-last memory order"""


class ObjectiveConfig(Section):
    """The local loss of every stage."""

    tau: Annotated[float, Field(gt=0)] = 1.0
    """step size of the minimizing movement: the transport cost weighs 1/(2 tau); inf: plain greedy learning"""
    varying: bool = False
    """tau/2 in the first half of the stages (the middle one of an odd number belongs to the second)"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """label smoothing of the training loss"""
    multiplier_step: NonNegativeFloat = 0.0
    """above 0, tau tunes itself: the transport cost weighs 1/lambda, and lambda grows by this times cross-entropy"""
    multiplier_every: PositiveInt = 50
    """updates between two such growths"""
    multiplier_start: PositiveFloat | None = None
    """lambda of the first stage at the start, and again at each lap's; default: 2 tau"""
    multiplier_depth_power: float = 0.0
    """p: stage k >= 1 starts at multiplier_start * k^p"""

    @model_validator(mode="after")
    def _a_number(self) -> ObjectiveConfig:
        if math.isnan(self.tau):
            raise ValueError("objective.tau: expected a number above 0, or inf, got nan")
        return self

    @field_serializer("tau")
    def _tau(self, tau: float) -> float | str:
        return "inf" if math.isinf(tau) else tau


class OptimizerConfig(Section):
    """One optimizer a stage, all alike."""

    name: Literal["sgd", "adam"] = "sgd"
    """optimizer"""
    lr: PositiveFloat = 0.02
    """highest learning rate"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """momentum of SGD; first beta of Adam"""
    weight_decay: NonNegativeFloat = 2e-4
    """weight decay"""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """course of the learning rate after the warm-up"""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.533, 0.667)
    """step schedule: shares of the run after which the rate is multiplied by step_factor"""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """step schedule: the factor"""
    warmup_epochs: NonNegativeFloat = 0.0
    """epochs over which the rate rises linearly from 0"""
    clip_norm: PositiveFloat | None = None
    """clip each stage's gradient to this norm; default: no clipping"""


class RegimeConfig(Section):
    """Who trains when, and for how long."""

    name: Literal["parallel", "sequential", "multi-lap", "wavefront", "asynchronous", "end-to-end"] = "parallel"
    """parallel: every stage by its own loss, all at once; sequential: one stage after the other, on the frozen ones
    before it; multi-lap: so in several laps; wavefront: multi-lap's weights with all workers busy; asynchronous: as
    parallel, but nobody waits for a slow stage; end-to-end: back-propagation through all blocks"""
    epochs: PositiveInt = 20
    """passes over the training part; where stages train one by one: of each stage, in each lap"""
    extra_epochs: Annotated[int, Field(ge=0)] = 0
    """more of them for deeper stages: stage k trains epochs + k * extra_epochs; where stages train one by one"""
    laps: PositiveInt = 1
    """sweeps over the stages (multi-lap, wavefront); each stage goes on from its own last lap"""
    inputs: Literal["auto", "cache", "frozen"] = "auto"
    """what a stage trains on where stages train one by one: the stage before's output, cached on disk, or computed
    anew by frozen copies of the stages before; auto: cache, unless images are augmented or it is too large"""
    cache_dir: str | None = None
    """local folder for caches on each node; default: the system's temporary folder"""
    cache_bytes: PositiveInt = 16 * 1024**3
    """most bytes that caches, or frozen copies, take at once"""
    buffer_size: PositiveInt = 8
    """asynchronous: inputs that a stage keeps, to train on again while no fresh one has come"""
    buffer_order: Literal["newest", "oldest", "random"] = "newest"
    """asynchronous: which of them is drawn: the newest or oldest of those least used, or any"""
    max_reuses: Annotated[int, Field(ge=0)] = 4
    """asynchronous: how often one input may be used again"""
    patience: PositiveInt | None = None
    """a stage stops training after this many evaluations without a rise of its validation accuracy; default: never"""
    evaluate_every: PositiveInt = 1
    """epochs between two evaluations on the validation part; there is always one after the last"""
    max_time_s: PositiveFloat | None = None
    """time limit: no training microbatch starts after this many seconds; the run then ends in order"""

    @property
    def one_by_one(self) -> bool:
        """Whether stages train one by one, in laps."""
        return self.name in ("sequential", "multi-lap", "wavefront")

    def lap_epochs(self, stage: int) -> int:
        """Epochs of a stage in one lap, or in the run where all train at once."""
        return self.epochs + stage * self.extra_epochs

    def total_epochs(self, stage: int) -> int:
        """Epochs of a stage in the whole run."""
        return self.laps * self.lap_epochs(stage)
