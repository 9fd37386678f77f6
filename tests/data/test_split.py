"""Which samples belong to which part, and in which order they come."""

from __future__ import annotations

import numpy as np
import pytest

from distblock.data.split import generator, stratified, windowed_order


def choose(labels: list[int], share: float, seed: int = 0, *, leave: int = 0) -> np.ndarray:
    return stratified(np.array(labels), share, generator(seed, "test"), leave=leave)


def test_each_class_gives_its_share():
    labels = [0] * 50 + [1] * 30 + [2] * 20
    chosen = choose(labels, 0.1)
    assert np.bincount(np.array(labels)[chosen]).tolist() == [5, 3, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_largest_remainders_by_hand():
    # 10 of 39: 5.13, 3.59 and 1.28; the one that floors leave goes to class 1.
    labels = [0] * 20 + [1] * 14 + [2] * 5
    assert np.bincount(np.array(labels)[choose(labels, 10 / 39)]).tolist() == [5, 4, 1]


def test_a_small_share_takes_one_of_each_class():
    labels = [0] * 97 + [1, 2, 2]
    assert np.bincount(np.array(labels)[choose(labels, 0.01)]).tolist() == [1, 1, 1]


def test_what_must_stay_stays():
    labels = [0] * 97 + [1, 2, 2]
    chosen = np.array(labels)[choose(labels, 0.9, leave=1)]
    assert np.bincount(chosen, minlength=3).tolist() == [89, 0, 1]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_balanced_classes_stay_balanced_and_counts_are_exact(share: float):
    labels = list(range(10)) * 450
    chosen = choose(labels, share)
    assert len(chosen) == round(4500 * share)
    assert set(np.bincount(np.array(labels)[chosen])) == {round(450 * share)}


def test_the_choice_follows_from_the_seed():
    labels = [0, 1] * 100
    assert choose(labels, 0.2, seed=1).tolist() == choose(labels, 0.2, seed=1).tolist()
    assert choose(labels, 0.2, seed=1).tolist() != choose(labels, 0.2, seed=2).tolist()


def groups_of(num_groups: int, size: int) -> list[np.ndarray]:
    return [np.arange(group * size, (group + 1) * size) for group in range(num_groups)]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_every_sample_comes_once(window: int):
    order = windowed_order(groups_of(5, 7), window, generator(0, "order", 0))
    assert sorted(order.tolist()) == list(range(35))


def test_no_more_than_a_window_of_groups_is_needed_at_once():
    order = windowed_order(groups_of(6, 10), 2, generator(0, "order", 0))
    windows = order.reshape(3, 20) // 10
    assert [len(set(window.tolist())) for window in windows] == [2, 2, 2]
    # Shuffled within the window: the two groups are mixed, not one after the other.
    assert all((window[1:] != window[:-1]).sum() > 1 for window in windows)


def test_with_all_groups_in_one_window_it_is_a_plain_shuffle():
    order = windowed_order(groups_of(4, 25), 4, generator(0, "order", 0))
    expected = generator(0, "order", 0).permutation(np.arange(100))
    assert order.tolist() == expected.tolist()


def test_epochs_differ():
    orders = [windowed_order(groups_of(4, 25), 2, generator(0, "order", epoch)).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
