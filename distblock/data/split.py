"""Which samples belong to which part, and in which order they come: pure functions of labels and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distblock.seeds import derive_seed


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Random numbers for one purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *purpose)))


def stratified(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose a share of the samples, of each class as many as its own share comes to.

    Args:
        labels: int64, ``(N,)``.
        share: 0 to 1.
        rng: draws which ones.

    Returns:
        Positions, ascending; ``round(N * share)`` of them, where every class gives at least one and keeps what it has.
        What rounding leaves goes to the classes with the largest remainders.
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas = _apportion(counts, round(len(labels) * share))
    chosen = [
        rng.permutation(np.flatnonzero(labels == name))[:quota] for name, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def windowed_order(groups: Sequence[np.ndarray], window: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle samples that lie in groups of which only a few fit into memory.

    Args:
        groups: positions of the samples of each group.
        window: groups held at once.
        rng: draws the order.

    Returns:
        Every position once: groups in random order, samples shuffled within each window of them. With all groups in
        one window, a plain shuffle.
    """
    if window >= len(groups):
        return rng.permutation(np.concatenate(groups))
    order = rng.permutation(len(groups))
    windows = [order[start : start + window] for start in range(0, len(order), window)]
    return np.concatenate([rng.permutation(np.concatenate([groups[group] for group in chosen])) for chosen in windows])


def _apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """Largest remainders: whole quotas in proportion to counts that add up to total, none of 0."""
    exact = counts * (total / counts.sum())
    quotas = np.maximum(np.floor(exact).astype(np.int64), 1)
    for index in np.argsort(np.floor(exact) - exact, kind="stable"):
        if quotas.sum() >= total:
            break
        quotas[index] = min(quotas[index] + 1, counts[index])
    return quotas
