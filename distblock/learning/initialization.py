"""How weights begin, each module from its own seed, so that it does not matter who builds what beside it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Initialization = Literal["orthogonal", "kaiming", "built"]


def initialize(module: nn.Module, how: Initialization, *, gain: float, seed: int) -> None:
    """Set weights of convolutions, linear layers and normalizations in place.

    Args:
        module: what to initialize, with all it contains.
        how: ``orthogonal`` (Saxe et al. 2014) with ``gain``; ``kaiming`` (He et al. 2015, normal, fan out, ReLU);
            ``built``: as they are. Biases become 0, normalizations 1 and 0.
        gain: of the orthogonal matrices.
        seed: of this module alone.
    """
    if how == "built":
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                if how == "orthogonal":
                    nn.init.orthogonal_(part.weight, gain=gain)
                else:
                    nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)) and part.weight is not None:
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
