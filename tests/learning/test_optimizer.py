"""Optimizers against torch's own classes, bit for bit."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distblock.config import OptimizerConfig, make_config
from distblock.learning.optimizer import build_optimizer
from distblock.preparation import make_job, prepare

SETTINGS: list[dict[str, Any]] = [
    {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    {"name": "adam", "momentum": 0.8, "weight_decay": 1e-3},
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def torchs(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "adam":
        betas = (config.momentum, 0.999)
        return torch.optim.Adam(module.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        module.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def backward(module: nn.Module, step: int, scale: float = 1.0) -> None:
    draw = torch.Generator().manual_seed(step)
    (scale * module(torch.randn(6, 5, generator=draw)).square().mean()).backward()


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_torchs(settings: dict[str, Any]):
    config = OptimizerConfig.model_validate(settings)
    mine, theirs = network(), network()
    own, other = build_optimizer(mine.parameters(), config), torchs(theirs, config)
    for step in range(12):
        own.lr = other.param_groups[0]["lr"] = 0.1 / (1 + step)
        for module, optimizer in ((mine, own), (theirs, other)):
            # Every now and then a parameter has no gradient.
            module.get_parameter("0.bias").requires_grad_(step % 4 != 3)
            backward(module, step)
            optimizer.step()
            optimizer.zero_grad()
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)
        kept = {key: value for key, value in other.state[two].items() if value is not None}
        assert own.state.get(one, {}).keys() == kept.keys()
        assert all(torch.equal(own.state[one][key], value) for key, value in kept.items())


@pytest.mark.parametrize("settings", SETTINGS)
def test_going_on_from_what_was_kept(settings: dict[str, Any]):
    config = OptimizerConfig.model_validate(settings)
    whole, halves = network(), network()
    optimizer = build_optimizer(whole.parameters(), config)
    first = build_optimizer(halves.parameters(), config)
    for step in range(6):
        backward(whole, step)
        optimizer.step()
        optimizer.zero_grad()
    for half in range(2):
        if half:
            kept = [copy.deepcopy(first.state.get(each, {})) for each in halves.parameters()]
            first = build_optimizer(halves.parameters(), config)
            for parameter, state in zip(halves.parameters(), kept, strict=True):
                if state:
                    first.load(parameter, state)
        for step in range(3 * half, 3 * half + 3):
            backward(halves, step)
            first.step()
            first.zero_grad()
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), halves.parameters(), strict=True))


def test_torchs_scaler_takes_it_for_one_of_torchs():
    config = OptimizerConfig()
    mine, theirs = network(), network()
    for module, optimizer in (
        (mine, build_optimizer(mine.parameters(), config)),
        (theirs, torchs(theirs, config)),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        taken: Any = optimizer
        for step in range(6):
            # One loss is not finite: that step is left out, and the scale goes down.
            backward(module, step, scale=scaler.get_scale() if step != 3 else float("inf"))
            scaler.scale(torch.ones(()))
            scaler.unscale_(taken)
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            scaler.step(taken)
            scaler.update()
            optimizer.zero_grad()
    assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in mine.parameters())


WORKER = """
import pickle, sys, time
import torch
from distblock.learning.host import Host
from distblock.messages import Item

with open(sys.argv[1], "rb") as file:
    host = Host(pickle.load(file), clock=time.perf_counter)
for index in range(2):
    host.work(Item.of_batch(index, 4), torch.rand(4, 1, 8, 8), torch.arange(4))
host.training_state()
print([stage.updates for stage in map(host.stage, host.spec.stages)], "torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_worker_does_not_import_torchs_compiler(tmp_path: Path, name: str):
    """Cause: torch's optimizers did, and each worker took seconds longer to start."""
    config = make_config({"optimizer": {"name": name, "clip_norm": 1.0}, "resources": {"workers": 1}})
    [spec] = make_job(prepare(config), run="run").hosts
    (tmp_path / "spec").write_bytes(pickle.dumps(spec))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "spec")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 2, 2] False"
