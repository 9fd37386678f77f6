"""What enters a stage, without data: the blocks before it make it of a few random images, and it is repeated.

Made of as many images as a microbatch has, it would leave memory behind that a stage which is measured then takes.
"""

from __future__ import annotations

import torch

from distblock.codecs.cast import Features, named_tensors, rebuild
from distblock.config import Config
from distblock.learning.blueprint import Build, Problem, network
from distblock.learning.network import detach, run_blocks
from distblock.learning.precision import computing_in

SAMPLES = 2
"""Different images."""


def entering(
    config: Config, problem: Problem, *, first: int, num_samples: int, device: torch.device, build: Build | None = None
) -> Features:
    """The input of a stage.

    Args:
        config: the settings.
        problem: what the network is built for.
        first: block of the stage.
        num_samples: of the microbatch.
        device: where the input is to be.
        build: the user's own network.

    Returns:
        ``(num_samples, ...)``, without gradients.
    """
    size = problem.image_size
    features: Features = torch.randn(SAMPLES, problem.in_channels, size, size)
    for block in network(config, problem, build, needed=range(first))[:first]:
        with torch.no_grad(), computing_in(config.precision, "cpu"):
            features = detach(run_blocks([block], features)[0])
    times = -(-num_samples // SAMPLES)
    return rebuild(
        {key: torch.cat([tensor] * times)[:num_samples].to(device) for key, tensor in named_tensors(features)}
    )
