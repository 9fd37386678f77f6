"""A trained run as a predictor that may answer early: every stage has a classifier, so any of them can be the last.

An image goes from stage to stage until a classifier that is asked is sure enough, or the last stage is reached; what
has answered is left out of the batch, so that the stages behind it have less to compute.

Source: Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686, with the confidence of Huang et al. 2018,
arXiv:1703.09844; temperatures: Guo et al. 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from distblock.codecs.cast import Features
from distblock.config import Config
from distblock.data.dataset import DataInfo
from distblock.errors import InputError
from distblock.evaluation import finished_spec
from distblock.inference.policies import Costs, Policy
from distblock.learning.blueprint import Build
from distblock.learning.host import build_stages
from distblock.learning.network import Block, main_tensor, part_of
from distblock.learning.partition import count_costs
from distblock.learning.stage import Stage
from distblock.runs import RunDirectory, read_weights


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was predicted, an entry an image.

    Attributes:
        classes: int64 ``(N,)``.
        probabilities: of these classes, float32 ``(N,)``.
        stages: that answered, int64 ``(N,)``.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    stages: np.ndarray


class Exits:
    """The stages of a finished run, in evaluation mode, in this process.

    Args:
        stages: with their weights.
        info: of the data that they were trained on.
        best_stage: that the run chose on validation.
    """

    def __init__(self, stages: Sequence[Stage], *, info: DataInfo, best_stage: int) -> None:
        self.stages = tuple(stages)
        self.info = info
        self.best_stage = best_stage
        self._mean = torch.tensor(info.mean)[:, None, None]
        self._std = torch.tensor(info.std)[:, None, None]

    def normalized(self, images: Tensor) -> Tensor:
        """Images scaled to 0..1 as the stages take them, float32 ``(N, C, H, W)``."""
        return (images - self._mean) / self._std

    @torch.no_grad()
    def logits(self, images: Tensor) -> list[Tensor]:
        """What each stage's classifier says, ``(N, classes)``, of normalized images."""
        features: Features = images
        found = []
        for stage in self.stages:
            features, logits = stage.predict(features)
            found.append(logits)
        return found

    @torch.no_grad()
    def answer(
        self, images: Tensor, *, last: int, policy: Policy | None = None, temperatures: Sequence[float] | None = None
    ) -> Answers:
        """Predict, each image by the first stage that is sure enough.

        Args:
            images: normalized, ``(N, C, H, W)``.
            last: the stage that answers whatever is left.
            policy: when a stage before it answers; None: none does.
            temperatures: of each stage's logits; None: as they are.
        """
        count = len(images)
        classes, stages = np.zeros(count, dtype=np.int64), np.full(count, last, dtype=np.int64)
        probabilities = np.zeros(count, dtype=np.float32)
        left = np.arange(count)
        features: Features = images
        for stage in self.stages[: last + 1]:
            if stage.index < last and (policy is None or not policy.asks(stage.index)):
                features = stage.forward(features)
                continue
            features, logits = stage.predict(features)
            highest, likeliest = probable(logits, 1.0 if temperatures is None else temperatures[stage.index])
            enough = 0.0 if policy is None or stage.index == last else policy.confidence
            is_sure = highest >= enough
            answered = left[is_sure]
            classes[answered], probabilities[answered] = likeliest[is_sure], highest[is_sure]
            stages[answered] = stage.index
            if is_sure.all():
                break
            left, kept = left[~is_sure], torch.from_numpy(np.flatnonzero(~is_sure))
            features = part_of(features, kept)
        return Answers(classes=classes, probabilities=probabilities, stages=stages)

    def costs(self) -> Costs:
        """Operations of an image; see `distblock.learning.partition.count_costs`."""
        size = (self.info.channels, self.info.image_size, self.info.image_size)
        features: Features = torch.zeros(2, *size)
        stages, classifiers = [], []
        for stage in self.stages:
            classifier: nn.Module = stage.module["classifier"]
            block = Block(name="classifier", modules=(("classifier", classifier),))
            leaving = stage.forward(features)
            stages.append(sum(count_costs(stage.blocks, features)) // 2)
            classifiers.append(sum(count_costs([block], main_tensor(leaving))) // 2)
            features = leaving
        return Costs(stages=stages, classifiers=classifiers)


def load_exits(directory: RunDirectory, *, config: Config, model: Build | None = None) -> Exits:
    """The stages of a run.

    Args:
        directory: the run.
        config: its settings, for this process.
        model: your own network, where the run was given it in Python.

    Raises:
        InputError: the run has no weights, or its network cannot be built.
    """
    spec, manifest = finished_spec(directory, config, model)
    states = read_weights(directory)
    stages = build_stages(spec, spec.stages)
    for stage in stages:
        stage.load({name: torch.from_numpy(array.copy()) for name, array in states[stage.index].items()})
    return Exits(stages, info=DataInfo.from_json(manifest["data"]), best_stage=manifest["best_stage"])


def check_last(exits: Exits, last: int | None) -> int:
    """The stage that answers last: as asked, or the one chosen on validation.

    Raises:
        InputError: there is no such stage.
    """
    if last is None:
        return exits.best_stage
    if not 0 <= last < len(exits.stages):
        raise InputError(f"--stage: expected 0 to {len(exits.stages) - 1}, got {last}")
    return last


def probable(logits: Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability and number of the likeliest class, ``(N,)`` each."""
    highest, likeliest = torch.softmax(logits.float() / temperature, dim=1).max(dim=1)
    return highest.numpy(), likeliest.numpy()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest cross-entropy on validation samples.

    Args:
        logits: ``(N, classes)``.
        labels: int64 ``(N,)``.
    """

    def loss(log_temperature: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / np.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))  # type: ignore[attr-defined]
