"""One seed for a run, and from it a seed for every use of chance.

A single random stream would make what one part draws depend on how much another has drawn, and so on the number of
workers. Here each use derives its own seed from the run's seed and from names and numbers that say what it is for.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, e.g. ``derive_seed(seed, "augment", epoch, index)``.

    Returns:
        A number from 0 to 2**63 - 1; equal on every machine.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
