"""How weights begin: as the paper's scripts have it, reproducibly, whoever builds the module."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from distblock.chance import seeded

Initialization = Literal["orthogonal", "kaiming", "built"]


def initialize(module: nn.Module, how: Initialization, *, gain: float, seed: int) -> None:
    """Set the weights of every convolution, linear layer and normalization in a module, in place.

    - ``orthogonal``: orthogonal matrices times ``gain`` (Saxe et al. 2014, arXiv:1312.6120; the paper's scripts).
    - ``kaiming``: normal of standard deviation ``sqrt(2 / fan_in)`` (He et al. 2015, arXiv:1502.01852); no gain.
    - ``built``: as the module's constructor left them; nothing is touched.

    In the first two, biases are 0 and normalizations begin with weight 1, bias 0. Parameters that belong to none of
    these layers (a class token, say) stay as built.

    Args:
        module: with its submodules, on the CPU.
        how: see above.
        gain: factor of the orthogonal matrices, above 0.
        seed: fixes what is drawn; torch's global generator is left as it was.
    """
    if how == "built":
        return
    with seeded(seed):
        for layer in module.modules():
            _initialize_layer(layer, how, gain)


def _initialize_layer(layer: nn.Module, how: Initialization, gain: float) -> None:
    if isinstance(layer, _ConvNd | nn.Linear):
        if how == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain)
        else:
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, _BatchNorm | nn.LayerNorm | nn.GroupNorm):
        if layer.weight is not None:
            nn.init.ones_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
