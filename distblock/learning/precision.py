"""What stages compute in."""

from __future__ import annotations

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By precision; fp32 does without autocast."""


def computing_in(precision: str, device_type: str) -> torch.autocast:
    """A context within which a stage's blocks and classifier compute."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)
