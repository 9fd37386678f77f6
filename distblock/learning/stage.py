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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distblock.chance import seeded
from distblock.codecs.cast import Features
from distblock.config import Config
from distblock.learning.network import Block, detach, joined, main_tensor, part_of, run_blocks, versions_of
from distblock.learning.objective import Multiplier, local_loss, multiplier_start, stage_tau, stage_transport_cost
from distblock.learning.optimizer import build_optimizer, lr_factor
from distblock.learning.precision import computing_in
from distblock.learning.replicas import AllHere, Averaging, Replicas
from distblock.messages import Item
from distblock.seeds import derive_seed
from distblock.shares import share


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What a stage found out about a microbatch; see `distblock.messages.StageReport`."""

    loss_sum: float
    transport_cost_sum: float
    num_correct: int
    lr: float | None
    multiplier: float | None = None


@dataclass(frozen=True, slots=True)
class _Pass:
    """A replica's pass forward, and what it aims at."""

    leaving: Features
    logits: Tensor
    cost: Tensor | None
    cross_entropy: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        return len(self.labels)


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
        replicas: who shares its microbatches; default: nobody.
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
        replicas: Replicas | None = None,
    ) -> None:
        self.index = index
        self.device = device
        self.blocks = tuple(blocks)
        self.module = nn.ModuleDict({"network": _nest(blocks), "classifier": classifier}).to(device)
        if config.model.channels_last:
            self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._modules = tuple(self.module.modules())
        self.is_frozen = index < config.model.freeze_before
        if self.is_frozen:
            self.module["network"].requires_grad_(False)
        self.tau = stage_tau(config.objective.tau, varying=config.objective.varying, stage=index, num_stages=num_stages)
        self._label_smoothing = config.objective.label_smoothing
        self._clip_norm = config.optimizer.clip_norm
        self._precision = config.precision
        self._channels_last = config.model.channels_last
        self._seed = derive_seed(config.seed, "stage", index)
        self.lap = 0
        self.updates = 0
        self._position = 0
        self._batch_size = config.data.batch_size
        self._steps_per_epoch = steps_per_epoch
        self._lap_updates = 0
        self._optimizer_config = config.optimizer
        self._warmup_steps = round(config.optimizer.warmup_epochs * steps_per_epoch)
        self._num_steps = steps_per_epoch * config.regime.total_epochs(index)
        self._multiplier = _multiplier(config, index, self.tau)
        self.optimizer = build_optimizer(self._trained.values(), config.optimizer)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._replicas = replicas or AllHere()
        self._averaging = Averaging(self.module, self._replicas) if self._replicas.count > 1 else None

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
        self._replicas.meet()
        self._begin_lap(item.lap)
        starts_batch = self._begin_batch(item)
        self._switch(training=True)
        if self.is_frozen:
            self.module["network"].eval()
        features = self._arrange(features)
        versions = versions_of(features)
        passes = self._forward_to_train(item, features, labels)
        if starts_batch and self._multiplier is not None:
            self._multiplier.update(self._lap_updates, self._mean_cross_entropy(passes))
        self._backward(item, passes)
        measures = _sum([self._measure(each, lr=self._lr) for each in passes])
        self._check(measures, item, features, versions)
        if item.closes_batch:
            self._step()
        return detach(joined([each.leaving for each in passes])), measures

    @torch.no_grad()
    def evaluate(self, features: Features, labels: Tensor) -> tuple[Features, Measures]:
        """The same in evaluation mode: running statistics, no step, cross-entropy without label smoothing."""
        self._switch(training=False)
        features, passes = self._arrange(features), []
        for _, part in self._shares(features):
            leaving, logits, cost = self.loss_terms(part_of(features, part))
            targets = labels[part]
            passes.append(_Pass(leaving, logits, cost, nn.functional.cross_entropy(logits, targets), targets))
        return joined([each.leaving for each in passes]), _sum([self._measure(each, lr=None) for each in passes])

    @torch.no_grad()
    def predict(self, features: Features) -> tuple[Features, Tensor]:
        """The output in evaluation mode, and logits ``(N, classes)`` in fp32."""
        self._switch(training=False)
        leaving, logits, _ = self.loss_terms(self._arrange(features))
        return leaving, logits

    @torch.no_grad()
    def forward(self, features: Features, *, blocks: Sequence[Block] | None = None) -> Features:
        """The output in evaluation mode, without the classifier; of other blocks in place of its own, where given."""
        features = self._arrange(features)
        blocks = self.blocks if blocks is None else blocks
        for block in blocks:
            for _, module in block.modules:
                module.eval()
        with computing_in(self._precision, self.device.type):
            parts = [part_of(features, part) for _, part in self._shares(features)]
            return joined([run_blocks(blocks, part)[0] for part in parts])

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers on the host, by name: ``network.<name in the network>`` and ``classifier.<name>``."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights and buffers that are given, by name; others stay."""
        self.module.load_state_dict(dict(state), strict=False)

    def training_state(self) -> dict[str, Tensor]:
        """All that the stage needs to train on as if nothing had happened: weights and buffers, the optimizer's state,
        counters, lambda and the loss's scale; on the host."""
        state = {f"weight/{name}": tensor for name, tensor in self.state().items()}
        # By name, so that it can go on in a stage that is cut elsewhere.
        for name, parameter in self._trained.items():
            # In the middle of a batch there are gradients too.
            if parameter.grad is not None:
                state[f"gradient/{name}"] = parameter.grad.detach().cpu()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{key}/{name}"] = value.detach().cpu()
        multiplier = 0.0 if self._multiplier is None else self._multiplier.value
        state["counters"] = torch.tensor([self.lap, self.updates, self._lap_updates, self._position])
        scaler = self._scaler.state_dict()
        scale = [scaler.get("scale", 1.0), scaler.get("_growth_tracker", 0)]
        state["scalars"] = torch.tensor([multiplier, *scale], dtype=torch.float64)
        return state

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `training_state` gave; of what is missing, the stage keeps its own."""
        self.load({key.removeprefix("weight/"): t for key, t in state.items() if key.startswith("weight/")})
        parameters = self._trained
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            what, _, name = key.partition("/")
            if what == "gradient":
                parameters[name].grad = tensor.to(self.device)
            elif what.startswith("optimizer."):
                moments.setdefault(name, {})[what.removeprefix("optimizer.")] = tensor
        self.optimizer.state.clear()
        for name, kept in moments.items():
            self.optimizer.load(parameters[name], kept)
        self.lap, self.updates, self._lap_updates, self._position = (int(value) for value in state["counters"])
        multiplier, scale, growth = state["scalars"].tolist()
        if self._multiplier is not None:
            self._multiplier.value = multiplier
        if self._scaler.is_enabled():
            values = {**self._scaler.state_dict(), "scale": scale, "_growth_tracker": int(growth)}
            self._scaler.load_state_dict(values)

    @property
    def _trained(self) -> dict[str, nn.Parameter]:
        """The weights that the optimizer knows, by name: those that ask for a gradient."""
        return {name: each for name, each in self.module.named_parameters() if each.requires_grad}

    def _switch(self, *, training: bool) -> None:
        """Training or evaluation mode; only if some module is not in it yet, since to go through all of them each step
        takes as long as a small convolution."""
        if any(module.training != training for module in self._modules):
            self.module.train(training)

    def _begin_lap(self, lap: int) -> None:
        if lap == self.lap:
            return
        self.lap, self._lap_updates = lap, 0
        if self._multiplier is not None:
            self._multiplier.begin_lap()

    def _begin_batch(self, item: Item) -> bool:
        """Whether the microbatch is its batch's first; the learning rate follows the place in the stream, so that it
        is the same for stages that have taken fewer steps, or more."""
        if self.optimizer.has_gradients:
            return False
        position = item.epoch * self._steps_per_epoch + item.first_sample // self._batch_size
        self._position = max(self._position, position)
        return True

    @property
    def _tau(self) -> float:
        """The cost weighs 1/(2 tau), or 1/lambda."""
        return self.tau if self._multiplier is None else self._multiplier.value / 2

    @property
    def _lr(self) -> float:
        """The learning rate of the next step."""
        config = self._optimizer_config
        return config.lr * lr_factor(self._position, config, warmup_steps=self._warmup_steps, num_steps=self._num_steps)

    def loss_terms(self, features: Features) -> tuple[Features, Tensor, Tensor | None]:
        """The output, logits ``(N, classes)`` in fp32, and the transport cost (None where there is none)."""
        with computing_in(self._precision, self.device.type):
            leaving, residuals = run_blocks(self.blocks, features)
            logits = self.module["classifier"](main_tensor(leaving))
        return leaving, logits.float(), stage_transport_cost(features, leaving, residuals)

    def _shares(self, features: Features) -> list[tuple[int, slice]]:
        """The replicas that this process computes, and what each takes of the samples that have come here."""
        own = self._replicas.own
        if len(own) == 1:
            return [(own[0], slice(None))]
        return [(each, share(len(main_tensor(features)), replica=each, count=len(own))) for each in own]

    def _forward_to_train(self, item: Item, features: Features, labels: Tensor) -> list[_Pass]:
        passes = []
        if self._averaging is not None:
            self._averaging.begin()
        for replica, part in self._shares(features):
            if self._averaging is not None:
                self._averaging.restore()
            # Random layers draw by (stage, microbatch): what they draw does not depend on who else shares the process.
            seed = derive_seed(self._seed, item.epoch, item.index, *([replica] if replica else []))
            with seeded(seed, self.device):
                leaving, logits, cost = self.loss_terms(part_of(features, part))
            targets = labels[part]
            cross_entropy = nn.functional.cross_entropy(logits, targets, label_smoothing=self._label_smoothing)
            passes.append(_Pass(leaving, logits, cost, cross_entropy, targets))
            if self._averaging is not None:
                self._averaging.take(len(targets))
        return passes

    def _mean_cross_entropy(self, passes: Sequence[_Pass]) -> float:
        """Over all replicas."""
        if self._averaging is None:
            return float(passes[0].cross_entropy.detach())
        counts = [each.cross_entropy.new_tensor(float(each.count)) for each in passes]
        losses = [each.cross_entropy.detach() * each.count for each in passes]
        total, count = self._replicas.add([torch.stack(pair) for pair in zip(losses, counts, strict=True)])
        return float(total / count)

    def _backward(self, item: Item, passes: Sequence[_Pass]) -> None:
        """Gradients of the local loss: of each own replica alone, then of all together."""
        for position, each in enumerate(passes):
            loss = local_loss(each.cross_entropy, each.cost, self._tau)
            if each.count != item.batch_samples:
                loss = loss * (each.count / item.batch_samples)
            self._scaler.scale(loss).backward()
            if self._averaging is not None:
                self._averaging.take_gradients(position)
        if self._averaging is not None:
            self._averaging.finish()

    def _measure(self, done: _Pass, *, lr: float | None) -> Measures:
        correct = (done.logits.detach().argmax(dim=1) == done.labels).sum()
        figures = [done.cross_entropy.detach(), correct, *([] if done.cost is None else [done.cost.detach()])]
        mean_loss, num_correct, *costs = self._numbers(figures)
        mean_cost = costs[0] if costs else 0.0
        return Measures(
            loss_sum=mean_loss * done.count,
            transport_cost_sum=mean_cost * done.count,
            num_correct=int(num_correct),
            lr=lr,
            multiplier=None if lr is None or self._multiplier is None else self._multiplier.value,
        )

    def _numbers(self, figures: Sequence[Tensor]) -> list[float]:
        """One transfer from the device for all; on a CPU there is none, and to stack them takes longer than to read."""
        if self.device.type == "cpu":
            return [float(figure) for figure in figures]
        return torch.stack([figure.double() for figure in figures]).tolist()

    def _check(self, measures: Measures, item: Item, features: Features, versions: list[int]) -> None:
        if not math.isfinite(measures.loss_sum + measures.transport_cost_sum):
            raise FloatingPointError(
                f"the loss is not finite (cross-entropy {measures.loss_sum / item.num_samples:.4g},"
                f" transport cost {measures.transport_cost_sum / item.num_samples:.4g}, tau {self._tau:g});"
                " try a smaller optimizer.lr, a larger objective.tau or optimizer.clip_norm"
            )
        if versions_of(features) != versions:
            raise ValueError("a block wrote to its input in place; make the operation out of place")

    def _step(self) -> None:
        self.optimizer.lr = self._lr
        scaled: Any = self.optimizer  # to the scaler it is one of torch's
        if self._clip_norm is not None:
            self._scaler.unscale_(scaled)
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip_norm)
        self._scaler.step(scaled)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        self._lap_updates += 1

    def _arrange(self, features: Features) -> Features:
        if self._channels_last and isinstance(features, Tensor) and features.ndim == 4:
            return features.contiguous(memory_format=torch.channels_last)
        return features


def _sum(measures: Sequence[Measures]) -> Measures:
    """Of all replicas of this process."""
    if len(measures) == 1:
        return measures[0]
    return replace(
        measures[0],
        loss_sum=sum(each.loss_sum for each in measures),
        transport_cost_sum=sum(each.transport_cost_sum for each in measures),
        num_correct=sum(each.num_correct for each in measures),
    )


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a state in key order: name, type, shape and raw little-endian bytes of each tensor."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """The same over arrays, as states travel."""
    return weights_sha256({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def _multiplier(config: Config, stage: int, tau: float) -> Multiplier | None:
    objective = config.objective
    if not objective.multiplier_step:
        return None
    start = multiplier_start(
        2 * tau if objective.multiplier_start is None else objective.multiplier_start,
        power=objective.multiplier_depth_power,
        stage=stage,
    )
    return Multiplier(start=start, step=objective.multiplier_step, every=objective.multiplier_every)


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
