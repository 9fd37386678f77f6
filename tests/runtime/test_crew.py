"""The processes of a run are what they are to be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from distblock.config import make_config
from distblock.learning.allocator import GLIBC_KEEPS, jemalloc_here
from distblock.preparation import make_job, prepare
from distblock.runtime import preflight
from distblock.runtime.cluster import placed
from distblock.runtime.crew import crew, environment_of
from distblock.runtime.preflight import shared_jemalloc

HERE = "/opt/ray/core/libjemalloc.so"


@pytest.mark.usefixtures("shared_ray")
def test_workers_on_a_cpu_take_jemalloc():
    path = jemalloc_here()
    if path is None:
        pytest.skip("Ray brings no jemalloc along here, or LD_PRELOAD is set")
    job = make_job(prepare(make_config({"data": {"name": "digits"}, "resources": {"workers": 1}})), run="allocator")
    with placed([{"CPU": 1.0}] * 2, strategy="PACK", note=print) as group, crew(job, group, jemalloc=path) as people:
        [worker] = people.workers[0].actors
        loaded = ray.get(worker.__ray_call__.remote(lambda _: Path("/proc/self/maps").read_text()))
    assert str(Path(path).resolve()) in loaded


def test_workers_with_a_gpu_keep_glibc():
    config = make_config({"data": {"name": "digits"}, "resources": {"gpus_per_worker": 0.5}})
    assert environment_of(config, HERE) == GLIBC_KEEPS


@pytest.mark.parametrize("answer", [None, "/usr/lib/ray/core/libjemalloc.so", "no answer within 60 s"])
def test_it_has_to_be_on_all_nodes(answer: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preflight, "jemalloc_here", lambda: HERE)
    said: list[str] = []

    def found(*answers: str | None) -> str | None:
        scouts: Any = SimpleNamespace(
            nodes=["a", "b"], ask=lambda nodes, *_, **__: dict(zip(nodes, answers, strict=True))
        )
        return shared_jemalloc(scouts, note=said.append)

    assert found(HERE, HERE) == HERE
    assert not said
    assert found(HERE, answer) is None
    assert "not what b would take" in said[0]
