"""Gradients and running statistics of replicas, against copies of the module that each see one share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distblock.config import make_config
from distblock.learning.host import build_stages
from distblock.learning.replicas import AllHere, Averaging, add_in_order
from distblock.messages import Item, Parcel
from distblock.preparation import make_job, prepare
from distblock.shares import share, share_of


def test_shares_are_a_partition_and_differ_by_one_at_most():
    for num_samples in (3, 10, 97):
        for count in (1, 2, 3):
            parts = [share(num_samples, replica=replica, count=count) for replica in range(count)]
            taken = [sample for part in parts for sample in range(part.start, part.stop)]
            assert taken == list(range(num_samples))
            sizes = {part.stop - part.start for part in parts}
            assert max(sizes) - min(sizes) <= 1


def test_a_share_keeps_its_microbatchs_place():
    item = Item(
        number=7,
        purpose="train",
        part="train",
        epoch=1,
        index=3,
        first_sample=30,
        num_samples=11,
        batch_samples=22,
        closes_batch=False,
        closes_pass=False,
    )
    parcel = Parcel((item, replace(item, number=8, index=4, num_samples=8)))
    parts = [share_of(parcel, replica=replica, count=2) for replica in range(2)]
    assert [[each.num_samples for each in part.items] for part in parts] == [[6, 4], [5, 4]]
    assert {part.items[0].first_sample for part in parts} == {30}
    assert share_of(parcel, replica=0, count=1) is parcel


def test_sums_go_from_first_to_last():
    parts = [torch.tensor([1e8]), torch.tensor([-1e8]), torch.tensor([1.0])]
    assert add_in_order(parts).item() == 1.0
    assert add_in_order(parts[::-1]).item() == 0.0


class Network(nn.Module):
    """A norm whose statistics run, a table that never moves, and a weight that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.tensor([0.1, 0.7]))
        self.register_buffer("assigned", torch.zeros(3))

    @property
    def running_mean(self) -> Tensor:
        assert self.norm.running_mean is not None
        return self.norm.running_mean

    def forward(self, features: Tensor) -> Tensor:
        features = self.linear(features)
        self.assigned = 0.9 * self.get_buffer("assigned") + 0.1 * features.detach().mean(dim=0)
        return self.norm(features) * self.get_buffer("table").sum()


def backward(module: nn.Module, features: Tensor, targets: Tensor, *, batch_samples: int) -> None:
    loss = (module(features) - targets).square().mean()
    (loss * (len(features) / batch_samples)).backward()


def by_copies(
    module: Network, batches: Sequence[tuple[Tensor, Tensor]], count: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients, the running mean and the other buffer after one batch, its microbatches cut into shares by hand."""
    batch_samples = sum(len(features) for features, _ in batches)
    gradients = [torch.zeros_like(parameter) for parameter in module.parameters()]
    mean, assigned = module.running_mean.clone(), module.get_buffer("assigned").clone()
    for features, targets in batches:
        means, put = [], []
        for replica in range(count):
            part = share(len(features), replica=replica, count=count)
            twin = copy.deepcopy(module)
            twin.running_mean.copy_(mean)
            twin.get_buffer("assigned").copy_(assigned)
            backward(twin, features[part], targets[part], batch_samples=batch_samples)
            for total, parameter in zip(gradients, twin.parameters(), strict=True):
                total += 0 if parameter.grad is None else parameter.grad
            means.append(twin.running_mean * (part.stop - part.start))
            put.append(twin.get_buffer("assigned") * (part.stop - part.start))
        mean, assigned = (torch.stack(each).sum(dim=0) / len(features) for each in (means, put))
    return gradients, mean, assigned


def test_gradients_add_up_over_shares_and_microbatches_and_statistics_are_means():
    torch.manual_seed(0)
    module, count = Network(), 3
    batches = [(torch.randn(size, 4), torch.randn(size, 3)) for size in (10, 7)]
    expected, expected_mean, expected_assigned = by_copies(module, batches, count)
    averaging = Averaging(module, AllHere(count))
    for features, targets in batches:
        averaging.begin()
        losses = []
        for replica in range(count):
            part = share(len(features), replica=replica, count=count)
            averaging.restore()
            loss = (module(features[part]) - targets[part]).square().mean()
            losses.append(loss * ((part.stop - part.start) / 17))
            averaging.take(part.stop - part.start)
        for replica, loss in enumerate(losses):
            loss.backward()
            averaging.take_gradients(replica)
        averaging.finish()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(module.running_mean, expected_mean)
    # A buffer that the module puts another tensor in the place of is like the others.
    torch.testing.assert_close(module.get_buffer("assigned"), expected_assigned)
    assert module.norm.num_batches_tracked == 2
    # What does not move is not touched, not even in its last bit.
    assert torch.equal(module.get_buffer("table"), torch.tensor([0.1, 0.7]))


def test_batchnorm_of_whole_networks_can_be_synchronized():
    """As far as a machine without a GPU shows: every norm is converted, under its own name."""
    for name in ("resnet8", "torchvision/resnet18"):
        config = make_config({"model": {"name": name, "stages": 2}, "data": {"image_size": 32}})
        prepared = prepare(config)
        [host, *_] = make_job(prepared, run="sync").hosts
        synchronized = config.model_copy(update={"model": config.model.model_copy(update={"sync_batchnorm": True})})
        for stage, plain in zip(
            build_stages(replace(host, config=synchronized), range(2)), build_stages(host, range(2)), strict=True
        ):
            norms = [module for module in stage.module.modules() if isinstance(module, _BatchNorm)]
            assert norms
            assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
            assert stage.state().keys() == plain.state().keys()
