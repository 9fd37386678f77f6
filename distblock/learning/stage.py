"""A stage: its blocks, its auxiliary classifier and its optimizer, and one step of its local loss.

Back-propagation ties every block to every other. A stage needs only what enters it: it computes its own loss, takes
its own step and hands on its output from before that step, detached. So nothing here knows of other stages.

Source: Karkar et al. 2022, arXiv:2210.00949; order of step and hand-over as Algorithm 1 of Belilovsky et al. 2020,
arXiv:1901.08164.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors
from distblock.config import Config
from distblock.learning.network import Block, main_tensor, run_blocks
from distblock.learning.objective import local_loss, stage_tau, stage_transport_cost
from distblock.learning.optimizer import build_optimizer
from distblock.messages import Item
from distblock.seeds import derive_seed

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a precision computes in; fp32 does without autocast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What a stage found out about a microbatch; see `distblock.messages.StageReport`."""

    loss_sum: float
    transport_cost_sum: float
    num_correct: int
    lr: float | None


class Stage:
    """One stage.

    Args:
        index: its place among the stages.
        num_stages: how many there are.
        blocks: its blocks, in order.
        classifier: its auxiliary classifier.
        config: the run's settings.
        steps_per_epoch: optimizer steps an epoch.
        device: where it lives.
    """

    def __init__(
        self,
        *,
        index: int,
        num_stages: int,
        blocks: Sequence[Block],
        classifier: nn.Module,
        config: Config,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.index = index
        self.device = device
        self.blocks = tuple(blocks)
        self.module = nn.ModuleDict({"network": _nest(blocks), "classifier": classifier}).to(device)
        if config.model.channels_last:
            self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.tau = stage_tau(config.objective.tau, varying=config.objective.varying, stage=index, num_stages=num_stages)
        self._label_smoothing = config.objective.label_smoothing
        self._clip_norm = config.optimizer.clip_norm
        self._autocast = AUTOCAST.get(config.precision)
        self._channels_last = config.model.channels_last
        self._seed = derive_seed(config.seed, "stage", index)
        self.optimizer, self.scheduler = build_optimizer(
            self.module.parameters(),
            config.optimizer,
            steps_per_epoch=steps_per_epoch,
            num_steps=steps_per_epoch * config.regime.epochs,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def train(self, item: Item, features: Features, labels: Tensor) -> tuple[Features, Measures]:
        """One microbatch of the local loss; a step of the optimizer where it closes its batch.

        Args:
            item: the microbatch; its gradient weighs ``num_samples / batch_samples``.
            features: what enters the stage, on its device; never written to.
            labels: int64 ``(N,)``.

        Returns:
            The stage's output from before the step, detached, and what was measured.

        Raises:
            FloatingPointError: the loss is not finite; no step was taken.
            ValueError: a block wrote to its input.
        """
        self.module.train()
        features = self._arrange(features)
        versions = _versions(features)
        # Random layers draw by (stage, microbatch): what they draw does not depend on who else shares the process.
        with torch.random.fork_rng(self._rng_devices()):
            torch.manual_seed(derive_seed(self._seed, item.number))
            leaving, logits, cost = self._forward(features)
        cross_entropy = nn.functional.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        loss = local_loss(cross_entropy, cost, self.tau)
        self._scaler.scale(loss * (item.num_samples / item.batch_samples)).backward()
        lr = self.optimizer.param_groups[0]["lr"]
        measures = self._measure(cross_entropy, cost, logits, labels, lr=lr)
        self._check(measures, item, features, versions)
        if item.closes_batch:
            self._step()
        return _detach(leaving), measures

    @torch.no_grad()
    def evaluate(self, features: Features, labels: Tensor) -> tuple[Features, Measures]:
        """The same in evaluation mode: running statistics, no step, cross-entropy without label smoothing."""
        self.module.eval()
        leaving, logits, cost = self._forward(self._arrange(features))
        cross_entropy = nn.functional.cross_entropy(logits, labels)
        return leaving, self._measure(cross_entropy, cost, logits, labels, lr=None)

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers on the host, by name: ``network.<name in the network>`` and ``classifier.<name>``."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights and buffers that are given, by name; others stay."""
        self.module.load_state_dict(dict(state), strict=False)

    def _forward(self, features: Features) -> tuple[Features, Tensor, Tensor | None]:
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            leaving, residuals = run_blocks(self.blocks, features)
            logits = self.module["classifier"](main_tensor(leaving))
        return leaving, logits.float(), stage_transport_cost(features, leaving, residuals)

    def _measure(
        self, cross_entropy: Tensor, cost: Tensor | None, logits: Tensor, labels: Tensor, *, lr: float | None
    ) -> Measures:
        """One transfer from the device for all figures."""
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        cost = torch.zeros_like(cross_entropy) if cost is None else cost
        figures = torch.stack([cross_entropy.detach().double(), cost.detach().double(), correct.double()])
        mean_loss, mean_cost, num_correct = figures.tolist()
        return Measures(
            loss_sum=mean_loss * len(labels),
            transport_cost_sum=mean_cost * len(labels),
            num_correct=int(num_correct),
            lr=lr,
        )

    def _check(self, measures: Measures, item: Item, features: Features, versions: list[int]) -> None:
        if not math.isfinite(measures.loss_sum + measures.transport_cost_sum):
            raise FloatingPointError(
                f"the loss is not finite (cross-entropy {measures.loss_sum / item.num_samples:.4g},"
                f" transport cost {measures.transport_cost_sum / item.num_samples:.4g}, tau {self.tau:g});"
                " try a smaller optimizer.lr, a larger objective.tau or optimizer.clip_norm"
            )
        if _versions(features) != versions:
            raise ValueError("a block wrote to its input in place; make the operation out of place")

    def _step(self) -> None:
        if self._clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def _arrange(self, features: Features) -> Features:
        if self._channels_last and isinstance(features, Tensor) and features.ndim == 4:
            return features.contiguous(memory_format=torch.channels_last)
        return features

    def _rng_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a state in key order: name, type, shape and raw little-endian bytes of each tensor."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _nest(blocks: Sequence[Block]) -> nn.Module:
    """Modules under their own dotted names, so that a state has the network's own keys however it is cut."""
    root = nn.Module()
    for block in blocks:
        for name, module in block.modules:
            *path, last = name.split(".")
            parent = root
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, module)
    return root


def _detach(features: Features) -> Features:
    if isinstance(features, Tensor):
        return features.detach()
    if isinstance(features, dict):
        return {key: tensor.detach() for key, tensor in features.items()}
    return tuple(tensor.detach() for tensor in features)


def _versions(features: Features) -> list[int]:
    return [tensor._version for _, tensor in named_tensors(features)]
