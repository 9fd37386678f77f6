"""Everything that can be set, checked once, before any work.

One tree of frozen records is the YAML file, the typed flags (``--data.name cifar10``) and the argument of
`BlockTrainer`. Unknown keys are refused; a value out of range is named with what was expected.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from distblock.errors import InputError

FORMAT_VERSION = 1
"""Version of the files of a run directory."""

SCORES = ("val_accuracy", "val_loss", "val_transport_cost", "train_accuracy", "train_loss", "train_transport_cost")
"""Figures by which checkpoints can be told apart."""

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Which samples, in which pieces."""

    name: str = "digits"
    """digits, cifar10, cifar100, stl10, mnist, fashion-mnist, svhn, folder, parquet, or your own: package.module:f"""
    path: str | None = None
    """folder (or, for parquet, folder or any pyarrow.fs URI) that holds the data; not needed for digits"""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """class-balanced part of the training part to keep; validation and test parts stay whole"""
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
    """microbatches each of them keeps ready"""
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


class ResourcesConfig(Section):
    """What a worker gets."""

    workers: PositiveInt | None = None
    """workers, each hosting consecutive stages; default: one a stage"""
    cpus_per_worker: NonNegativeFloat = 1.0
    """CPUs of a worker"""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs of a worker, fractions too; above 0 its stages live on that GPU"""
    threads_per_worker: PositiveInt = 1
    """threads that a worker computes with; results are the same only for the same number"""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """how the placement group lays workers out over nodes"""


Codec = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "topk", "vq", "diff8", "diff4", "diff2"]


class ChannelConfig(Section):
    """What crosses from stage to stage, and how much at once."""

    CASTS: ClassVar[tuple[Codec, ...]] = ("fp32", "fp16", "bf16")
    REMEMBERING: ClassVar[tuple[Codec, ...]] = ("topk", "vq", "diff8", "diff4", "diff2")

    codec: Codec = "fp32"
    """how activations cross every edge: fp32 as they are; fp16, bf16 cast; fp8, int8, int4 scaled by channel; topk the
    largest of each sample, with error feedback; vq numbers of learned vectors; diff8, diff4, diff2 what has changed of
    a sample, with so many bits"""
    edge_codecs: dict[PositiveInt, Codec] = {}
    """codecs of single edges instead of codec, by the stage that an edge enters: 1=int8 3=fp32"""
    codec_cache_bytes: PositiveInt = 256 * 1024**2
    """bytes of activations that each end of an edge keeps for differences and for error feedback; samples beyond them
    cross as 8 bits, or as their largest values"""
    topk_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """share of the values of a sample that topk sends"""
    microbatches_per_call: PositiveInt | Literal["auto"] = "auto"
    """consecutive microbatches that one call takes to a worker, a parcel: quick ones are bound by calls otherwise;
    auto: as many as keep the slowest worker busy for some 20 ms; one in the asynchronous regime"""
    max_in_flight: PositiveInt = 4
    """parcels in flight on an edge"""
    max_in_flight_bytes: PositiveInt = 256 * 1024**2
    """bytes in flight on an edge; one parcel always passes"""

    def codec_of(self, edge: int) -> Codec:
        """How activations enter a stage; images enter the first one as they are."""
        return self.edge_codecs.get(edge, self.codec) if edge else "fp32"

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """All that some edge may have."""
        return (self.codec, *self.edge_codecs.values())

    @property
    def remembers(self) -> bool:
        """Some edge's codec remembers samples, or what it has seen of them."""
        return any(codec in self.REMEMBERING for codec in self.codecs)


class RecoveryConfig(Section):
    """What a run does about workers that die or freeze."""

    scope: Literal["worker", "run"] = "worker"
    """what a dead or frozen worker costs: worker: its own restart; run: all go back to the last checkpoint, as other
    trainers do, to compare with"""
    max_failures: Annotated[int, Field(ge=-1)] = -1
    """failures that a run survives; -1: any number, 0: none"""
    kept_bytes: PositiveInt = 64 * 1024**2
    """bytes of a worker's inputs that are kept to be computed again; a snapshot of the worker lets go of them"""
    deadline_s: PositiveFloat = 60.0
    """seconds without a result after which a worker counts as frozen; more where its microbatches take long"""


class CheckpointsConfig(Section):
    """Checkpoints that outlive the run's processes."""

    every_s: PositiveFloat | Literal["auto"] | None = "auto"
    """seconds between two; auto: as often as takes under 3 % of the time; none: no checkpoints by time"""
    every_microbatches: PositiveInt | None = None
    """microbatches of the last stage between two, instead of or beside every_s"""
    num_to_keep: PositiveInt | None = 2
    """checkpoints to keep beside the final weights: the best by score, and always the newest; none: all"""
    score: Annotated[str, Field(pattern=rf"^(stages\.\d+\.)?({'|'.join(SCORES)})$")] | None = None
    """figure that tells the best: val_accuracy, val_loss, train_loss, ... of the best stage by validation, or one
    stage's, such as stages.3.val_accuracy; default: the newest are the best"""
    score_order: Literal["max", "min"] = "max"
    """whether a large or a small figure is good"""
    grace_s: PositiveFloat = 20.0
    """seconds for one more checkpoint when the run is told to end (SIGTERM)"""

    @property
    def is_on(self) -> bool:
        """Whether there are any."""
        return self.every_s is not None or self.every_microbatches is not None


class MetricsConfig(Section):
    """The Prometheus exporter and the log of hops."""

    record: bool = True
    """keep what hops cost and when everything happened; off: only what training itself needs, to see what this costs
    (distblock bench measuring)"""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """port of the Prometheus exporter; 0: any free one; default: no exporter"""
    host: str = "127.0.0.1"
    """address the exporter listens on"""
    interval_s: PositiveFloat = 1.0
    """seconds that a row of hops.parquet covers"""


class Config(Section):
    """A run. Without arguments: a small residual network on scikit-learn's digits."""

    run_dir: str | None = None
    """directory of the run: a local path or any pyarrow.fs URI; default: runs/<time>-<data>-<model>"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """the one seed of weights, splits, order, augmentation and random layers"""
    address: str | None = None
    """address of a Ray cluster to join; default: an embedded Ray"""
    resume: bool = False
    """go on with the run in run_dir, if there is one and it has not ended"""
    executor: Literal["ray", "local"] = "ray"
    """ray: workers; local: the plain loop, in this process"""
    replicas: PositiveInt = 1
    """workers that share each stage (data parallel): each takes a part of every microbatch, gradients are averaged"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """type that stages compute in (autocast); fp16 scales the loss and needs a GPU"""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    regime: RegimeConfig = RegimeConfig()
    resources: ResourcesConfig = ResourcesConfig()
    channel: ChannelConfig = ChannelConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    checkpoint: CheckpointsConfig = CheckpointsConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def workers_per_stage(self) -> int:
        """Processes that share a stage, and report apart; the plain loop computes all replicas in one."""
        return self.replicas if self.executor == "ray" else 1

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        _check_together(self)
        return self


def _check_together(config: Config) -> None:
    """Rules that span sections."""
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
    needs_path = config.data.name not in ("digits",) and ":" not in config.data.name
    if needs_path and config.data.path is None:
        raise ValueError(f"data.path: expected the folder of {config.data.name}, got nothing; set --data.path")


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
    """What the regime asks of codecs."""
    channel, regime = config.channel, config.regime
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


def make_config(values: dict[str, Any]) -> Config:
    """Check a nested dictionary.

    Raises:
        InputError: unknown keys or values out of range; one line names them all.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def read_values(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, not yet checked.

    Raises:
        InputError: the file cannot be read, or is no YAML mapping.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path}: {error}") from None
    return parse_values(text, origin=str(path))


def parse_values(text: str, *, origin: str) -> dict[str, Any]:
    """The keys and values of YAML text, not yet checked; ``origin`` names it in errors."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"config file {origin}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"config file {origin}: expected keys and values, got {type(values).__name__}")
    version = values.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise InputError(f"config file {origin}: expected format_version {FORMAT_VERSION}, got {version}")
    return values


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, with the version of the format."""
    values = {"format_version": FORMAT_VERSION, **config.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False)


def explain(error: ValidationError) -> str:
    """One line for all that a validation found: key, expectation, what came."""
    return "; ".join(_explain_one(detail) for detail in error.errors())


def _explain_one(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"] if not str(part).startswith(("constrained-", "literal[")))
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(detail['loc'])}"
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    return f"{key}: {detail['msg'].lower().replace('input should', 'should')}, got {detail['input']!r}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """The known keys beside an unknown one, the nearest first where one is near."""
    import difflib

    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; expected one of {', '.join(section.model_fields)}"
