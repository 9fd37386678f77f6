"""What is drawn within a seed is what torch draws from it, and nothing outside notices."""

from __future__ import annotations

import traceback

import pytest
import torch

from distblock.chance import seeded


def test_the_same_numbers_as_torchs_own_seed():
    with seeded(2**63 - 1):
        drawn = torch.rand(3)
    torch.manual_seed(2**63 - 1)
    assert torch.equal(drawn, torch.rand(3))


def test_outside_nothing_has_changed():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = torch.rand(1)
    with seeded(1):
        torch.rand(7)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_no_stack_trace_is_written(monkeypatch: pytest.MonkeyPatch):
    """torch.manual_seed writes several each time while there is no GPU, which takes longer than a small step."""

    def refuse(*arguments: object) -> list[str]:
        raise AssertionError("a stack trace was written")

    monkeypatch.setattr(traceback, "format_stack", refuse)
    with seeded(1):
        torch.rand(1)
