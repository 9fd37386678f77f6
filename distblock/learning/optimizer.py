"""One optimizer a stage, and the course of its learning rate as a pure function of the step.

The arithmetic is torch's own, by its functions `torch.optim.sgd.sgd` and `torch.optim.adam.adam`. Its classes import
torch's compiler with the first of them, which takes a process that starts as long as torch itself; every worker that
takes a dead one's place is such a process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from distblock.config import OptimizerConfig

ADAM_EPS = 1e-8
ADAM_BETA2 = 0.999


class Optimizer(ABC):
    """What `torch.optim.Optimizer` is to whoever uses one, `torch.amp.GradScaler` among them.

    Args:
        parameters: all of one group.
        config: its settings.

    Attributes:
        state: what is kept of each parameter between steps, by name, as torch's own classes name it.
        lr: of the next step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        self._parameters = list(parameters)
        self._config = config
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.lr = config.lr

    @property
    def param_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """The one group, as torch lays it out."""
        return [{"params": self._parameters}]

    @property
    def has_gradients(self) -> bool:
        """Some parameter has one."""
        return any(parameter.grad is not None for parameter in self._parameters)

    def zero_grad(self) -> None:
        """No parameter has a gradient any more."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters that have gradients."""
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        self._step(parameters, [parameter.grad for parameter in parameters if parameter.grad is not None])

    def load(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Go on from what was kept of a parameter."""
        # The number of steps is counted on the CPU.
        self.state[parameter] = {
            key: tensor.clone() if key == "step" else tensor.to(parameter.device, parameter.dtype, copy=True)
            for key, tensor in state.items()
        }

    @abstractmethod
    def _step(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None: ...


class SGD(Optimizer):
    """With momentum; what `torch.optim.SGD` does."""

    def _step(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        momentum = self._config.momentum
        buffers: list[Tensor | None] = [self.state.get(each, {}).get("momentum_buffer") for each in parameters]
        sgd(
            list(parameters),
            gradients,
            buffers,
            foreach=_foreach(parameters),
            lr=self.lr,
            momentum=momentum,
            weight_decay=self._config.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if momentum:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                assert buffer is not None
                self.state.setdefault(parameter, {})["momentum_buffer"] = buffer


class Adam(Optimizer):
    """What `torch.optim.Adam` does."""

    def _step(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        states = [self.state[parameter] for parameter in parameters]
        adam(
            list(parameters),
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=_foreach(parameters),
            lr=self.lr,
            beta1=self._config.momentum,
            beta2=ADAM_BETA2,
            eps=ADAM_EPS,
            weight_decay=self._config.weight_decay,
            amsgrad=False,
            maximize=False,
        )


def _foreach(parameters: list[nn.Parameter]) -> bool | None:
    """On a CPU torch takes one parameter at a time by itself, and looks at all of them each step to see that."""
    return False if parameters and parameters[0].device.type == "cpu" else None


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """An optimizer of one stage's parameters."""
    return (Adam if config.name == "adam" else SGD)(parameters, config)


def lr_factor(step: int, config: OptimizerConfig, *, warmup_steps: int, num_steps: int) -> float:
    """What the highest learning rate is multiplied by at a step.

    A linear rise over ``warmup_steps`` (the first step takes ``1 / warmup_steps``), then by ``config.schedule``:
    half a cosine from 1 to 0 over the remaining steps (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts),
    a factor at each milestone (a share of the whole run), or constant.

    Args:
        step: steps taken before this one.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "cosine":
        done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.schedule == "step":
        passed = sum(step >= milestone * num_steps for milestone in config.milestones)
        return config.step_factor**passed
    return 1.0
