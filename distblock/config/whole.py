"""A run's whole configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distblock.config.rules import check_together
from distblock.config.running import (
    ChannelConfig,
    CheckpointsConfig,
    MetricsConfig,
    RecoveryConfig,
    ResourcesConfig,
)
from distblock.config.section import PositiveInt, Section
from distblock.config.training import DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, RegimeConfig


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
        check_together(self)
        return self
