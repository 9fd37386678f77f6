"""What touches a GPU by itself: copies beside the computing, NCCL, synchronized norms, the benchmark of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distblock.bench import main as bench
from distblock.codecs.cast import decode, encode
from distblock.codecs.staging import Staging
from distblock.runtime.group import Group

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_what_arrives_is_what_the_device_computed(codec: str, order: torch.memory_format):
    """While the device is busy with later work, which must not be waited for, nor seen."""
    device = torch.device("cuda")
    staging = Staging(device)
    busy = torch.randn(4096, 4096, device=device)
    for number in range(20):
        generator = torch.Generator().manual_seed(number)
        host = torch.randn(64, 16, 8, 8, generator=generator)
        features = (host.to(device) * 2 + 1).contiguous(memory_format=order)
        labels = torch.arange(64, device=device)
        staging.mark()
        for _ in range(4):
            busy = busy @ busy * 1e-4
        payload = encode(features, labels, codec=codec, run="r", edge=1, number=number, staging=staging)
        arrived, arrived_labels = decode(payload, staging=staging)
        wanted = (host * 2 + 1).to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[codec])
        assert isinstance(arrived, torch.Tensor)
        assert torch.equal(arrived.cpu(), wanted.float())
        assert arrived.is_contiguous(memory_format=order)
        assert arrived_labels.tolist() == list(range(64))


@pytest.fixture
def group() -> Iterator[Group]:
    group = Group(replica=0, count=1, node="127.0.0.1", device=torch.device("cuda"))
    group.join(*group.open())
    yield group
    dist.destroy_process_group()


def test_one_replica_adds_up_by_nccl(group: Group):
    """NCCL joins no two processes on one GPU: with one GPU, what can be seen is that every call is one NCCL takes."""
    group.meet()
    assert dist.get_backend() == "nccl"
    part = torch.randn(1001, device="cuda")
    assert torch.equal(group.add([part]), part)


def test_synchronized_norm_is_the_norm(group: Group):
    group.meet()
    torch.manual_seed(0)
    features = torch.randn(32, 8, 4, 4, device="cuda")
    plain = nn.BatchNorm2d(8).cuda()
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(8)).cuda()
    torch.testing.assert_close(synchronized(features), plain(features))
    torch.testing.assert_close(synchronized.running_var, plain.running_var)


def test_memory_is_that_of_the_device(tmp_path: Path):
    output = tmp_path / "memory.json"
    small = ["--model", "resnet20", "--image-size", "32", "--stages", "2", "--batch-size", "256"]
    bench(["memory", *small, "--gpu", "--output", str(output)])
    content = json.loads(output.read_text())
    peaks = content.get("figures", content)["peak_bytes"]
    assert max(peaks["2"]) < peaks["1"][0]
