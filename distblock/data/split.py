"""Which samples belong to which part, and in which order they come: pure functions of labels and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distblock.seeds import derive_seed


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Random numbers for one purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *purpose)))


def stratified(labels: np.ndarray, share: float, rng: np.random.Generator, *, leave: int = 0) -> np.ndarray:
    """Choose a share of the samples, of each class as many as its own share comes to.

    Args:
        labels: int64, ``(N,)``.
        share: 0 to 1.
        rng: draws which ones.
        leave: samples of each class that must stay behind.

    Returns:
        Positions, ascending: ``round(N * share)`` of them, unless that is fewer than one of each class that has enough,
        or more than ``leave`` allows. What rounding leaves goes to the classes with the largest remainders.
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas = _apportion(counts, round(len(labels) * share), most=np.maximum(counts - leave, 0))
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


def _apportion(counts: np.ndarray, total: int, *, most: np.ndarray) -> np.ndarray:
    """Largest remainders: whole quotas in proportion to counts that add up to total, each at least 1 if it may."""
    exact = counts * (total / counts.sum())
    quotas = np.clip(np.floor(exact).astype(np.int64), np.minimum(1, most), most)
    by_remainder = np.argsort(np.floor(exact) - exact, kind="stable")
    while quotas.sum() < min(total, most.sum()):
        takers = by_remainder[quotas[by_remainder] < most[by_remainder]]
        quotas[takers[: total - quotas.sum()]] += 1
    return quotas
