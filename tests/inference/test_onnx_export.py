"""ONNX files against torch, by onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from further import further

from distblock import BlockTrainer
from distblock.errors import InputError
from distblock.evaluation import in_one_piece
from distblock.inference.exits import load_exits
from distblock.inference.onnx_export import export_onnx
from distblock.runs import RunDirectory


def trained(folder: Path, **changes: Any) -> RunDirectory:
    BlockTrainer({"executor": "local", "run_dir": str(folder), "regime": {"epochs": 1}, **changes}).fit()
    return RunDirectory.at(folder)


def check(run: RunDirectory, to: Path, *, count: int) -> None:
    """Equal classes, and logits within 1e-4."""
    outputs = export_onnx(run, to=to, with_exits=True)
    exits = load_exits(run, config=in_one_piece(run.read_config(), None))
    info = exits.info
    draw = np.random.default_rng(0)
    images = draw.random((count, info.channels, info.image_size, info.image_size), dtype=np.float32)
    session = onnxruntime.InferenceSession(str(to))
    got: Any = session.run(None, {"images": images})
    wanted = exits.logits(exits.normalized(torch.from_numpy(images)))
    assert [output.name for output in session.get_outputs()] == outputs
    assert len(got) == len(outputs) == exits.best_stage + 1
    for mine, theirs in zip(got, wanted, strict=False):
        assert mine.shape == (count, info.num_classes)
        assert np.array_equal(mine.argmax(1), theirs.numpy().argmax(1))
        assert np.abs(mine - theirs.numpy()).max() <= 1e-4


def test_the_small_network(tmp_path: Path):
    run = trained(tmp_path / "run")
    check(run, tmp_path / "model.onnx", count=1000)
    assert export_onnx(run, to=tmp_path / "first.onnx", stage=0) == ["logits"]


@pytest.mark.parametrize(
    ("model", "count"),
    [({"name": "resnet20"}, 100), further({"name": "torchvision/resnet18", "stages": 2}, 20)],
)
def test_networks_for_cifar(tmp_path: Path, small_cifar10: Path, model: dict[str, Any], count: int):
    data = {"name": "parquet", "path": str(small_cifar10), "fraction": 0.3}
    check(trained(tmp_path / "run", data=data, model=model), tmp_path / "model.onnx", count=count)


def test_the_documentations_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parents[2] / "docs" / "own_network_and_data.md").read_text()
    [code] = re.findall(r"^```python\n# shapes.py\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "shapes.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    run = trained(tmp_path / "run", data={"name": "shapes:load"}, model={"name": "shapes:build"})
    check(run, tmp_path / "model.onnx", count=1000)


def test_what_cannot_be_is_named(tmp_path: Path):
    run = trained(tmp_path / "run", data={"fraction": 0.2})
    with pytest.raises(InputError, match="--stage: expected 0 to 2, got 5"):
        export_onnx(run, to=tmp_path / "model.onnx", stage=5)
    with pytest.raises(InputError, match="--to: expected a file in a folder"):
        export_onnx(run, to=tmp_path / "no" / "model.onnx")
