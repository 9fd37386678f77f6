"""How a run goes about it: workers, edges, recovery, checkpoints and metrics."""

from __future__ import annotations

import math
import os
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distblock.config.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

SCORES = ("val_accuracy", "val_loss", "val_transport_cost", "train_accuracy", "train_loss", "train_transport_cost")
"""Figures by which checkpoints can be told apart."""


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
    nodes: tuple[str, ...] = ()
    """addresses of the nodes that workers run on, one a worker in the order of the stages (row by row with replicas),
    data workers beside the first; such as 10.0.0.1 10.0.0.2; default: any"""


def ray_encrypts() -> bool:
    """Whether Ray is told to encrypt what its processes send to one another."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


Codec = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "topk", "vq", "diff8", "diff4", "diff2"]


class ChannelConfig(Section):
    """What crosses from stage to stage, and how much at once."""

    CASTS: ClassVar[tuple[Codec, ...]] = ("fp32", "fp16", "bf16")
    REMEMBERING: ClassVar[tuple[Codec, ...]] = ("topk", "vq", "diff8", "diff4", "diff2")
    KEEPING: ClassVar[tuple[Codec, ...]] = ("topk", "diff8", "diff4", "diff2")
    """Of those, the ones that keep samples; vq keeps a codebook."""

    codec: Codec | Literal["auto"] = "fp32"
    """how activations cross every edge: fp32 as they are; fp16, bf16 cast; fp8, int8, int4 scaled by channel; topk the
    largest of each sample, with error feedback; vq numbers of learned vectors; diff8, diff4, diff2 what has changed of
    a sample, with so many bits; auto: of auto_codecs, for each edge between two hosts, the one that its line, measured
    before the run, and its own time make quickest; fp32 within a host"""
    auto_codecs: Annotated[tuple[Codec, ...], Field(min_length=1)] = ("fp32", "bf16")
    """codecs that auto may choose from, since all but fp32 cost some accuracy"""
    edge_codecs: dict[PositiveInt, Codec] = Field(default={})
    """codecs of single edges instead of codec, by the stage that an edge enters: 1=int8 3=fp32"""
    codec_cache_bytes: PositiveInt = 256 * 1024**2
    """bytes of activations that each end of an edge keeps for differences and for error feedback; samples beyond them
    cross as 8 bits, or as their largest values"""
    topk_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """share of the values of a sample that topk sends"""
    microbatches_per_call: PositiveInt | Literal["auto"] = "auto"
    """consecutive microbatches that one call takes to a worker, a parcel: quick ones are bound by calls otherwise;
    auto: as many as keep the slowest worker busy for some 0.2 s; one in the asynchronous regime"""
    transport: Literal["auto", "object_store", "worker"] = "auto"
    """how activations get to the next worker: object_store: by Ray's; worker: over a connection from worker to worker,
    which nothing encrypts, and by the object store for who cannot have them so; auto: worker between two nodes whose
    line could be measured, for calls of 100 KiB and more, unless Ray is told to encrypt (RAY_USE_TLS); else
    object_store"""
    max_in_flight: PositiveInt = 4
    """parcels in flight on an edge"""
    max_in_flight_bytes: PositiveInt = 256 * 1024**2
    """bytes in flight on an edge; one parcel always passes"""

    @property
    def past_store_bytes(self) -> float:
        """Of a call's outputs, from which they are offered from worker to worker between two nodes: less than 100 KiB
        Ray sends inside calls. Infinite: they are not."""
        auto = math.inf if ray_encrypts() else 100 * 1024
        return {"auto": auto, "object_store": math.inf, "worker": 0}[self.transport]

    def codec_of(self, edge: int) -> Codec:
        """How activations enter a stage; images enter the first one as they are. What auto comes to is in edge_codecs
        as soon as it is known, and nothing crosses before that."""
        default: Codec = "fp32" if self.codec == "auto" else self.codec
        return self.edge_codecs.get(edge, default) if edge else "fp32"

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """All that some edge may have."""
        return (*self.offered, *self.edge_codecs.values())

    @property
    def offered(self) -> tuple[Codec, ...]:
        """Those that an edge without one of its own may have."""
        return self.auto_codecs if self.codec == "auto" else (self.codec,)

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
    tensorboard: str | None = None
    """folder for TensorBoard, the run's event files in one of its name (distblock[tensorboard]); default: none"""
    mlflow: str | None = None
    """MLflow's tracking URI, such as http://localhost:5000 (distblock[mlflow]); default: none"""
    mlflow_experiment: str = "distblock"
    """MLflow's experiment that the run belongs to"""
