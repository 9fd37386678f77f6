"""Torch's random generators, seeded for one purpose and put back behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """What is drawn in here comes from a seed, on the CPU and on a device; outside nothing has changed.

    The same numbers as after ``torch.manual_seed``, which besides leaves a stack trace for every kind of accelerator
    that might be there later, half a millisecond each: more than a small stage computes, and than an image takes.

    Args:
        seed: from 0 to 2**63 - 1.
        device: where else is drawn.
    """
    # Of a CPU alone `fork_rng` would look for devices first, which takes longer than a small stage's loss.
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        with _gpu_seeded(seed, device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.default_generator.set_state(before)


@contextmanager
def _gpu_seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device]):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
        yield
