"""A run's network as ONNX, for whoever has no torch: from images scaled to 0..1 to logits, normalization included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distblock.errors import InputError
from distblock.evaluation import in_one_piece
from distblock.flags import check_folder
from distblock.inference.exits import check_last, load_exits
from distblock.learning.blueprint import Build
from distblock.learning.network import main_tensor
from distblock.learning.stage import Stage
from distblock.runs import RunDirectory

OPSET = 18


class _Network(nn.Module):
    """Stages in evaluation mode, with the classifier of the last one or of all."""

    mean: Tensor
    std: Tensor

    def __init__(self, stages: Sequence[Stage], mean: Tensor, std: Tensor, *, with_exits: bool) -> None:
        super().__init__()
        self._stages = stages
        self.parts = nn.ModuleList([stage.module for stage in stages])
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self._with_exits = with_exits

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features: Any = (images - self.mean) / self.std
        logits = []
        for stage in self._stages:
            for block in stage.blocks:
                for _, module in block.modules:
                    features = module(features)
            if self._with_exits or stage is self._stages[-1]:
                logits.append(stage.module["classifier"](main_tensor(features)))
        return tuple(logits)


def export_onnx(
    directory: RunDirectory,
    *,
    to: str | Path,
    stage: int | None = None,
    with_exits: bool = False,
    model: Build | None = None,
) -> list[str]:
    """Write an ONNX file; the number of images is free.

    Args:
        directory: the run.
        to: the file.
        stage: the last stage; default: the one chosen on validation.
        with_exits: an output for every stage's classifier.
        model: your own network, where the run was given it in Python.

    Returns:
        Names of the outputs: ``logits`` of the last stage, ``logits_<stage>`` of those before.

    Raises:
        InputError: the run, the stage, the file or the package cannot be used, or the network has operations that ONNX
            does not know.
    """
    check_folder(to, where="--to")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"export: expected the packages of ONNX, got {error}; pip install distblock[onnx]") from None
    config = in_one_piece(directory.read_config(), None)
    exits = load_exits(directory, config=config, model=model)
    last = check_last(exits, stage)
    info = exits.info
    network = _Network(
        exits.stages[: last + 1],
        torch.tensor(info.mean)[:, None, None],
        torch.tensor(info.std)[:, None, None],
        with_exits=with_exits,
    ).eval()
    names = [f"logits_{index}" for index in range(last)] if with_exits else []
    example = torch.rand(2, info.channels, info.image_size, info.image_size)
    try:
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=[*names, "logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("count", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(to))
    except OSError as error:
        raise InputError(f"{to}: cannot be written: {error}") from None
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"export: torch cannot write this network as ONNX: {reason}") from None
    return [*names, "logits"]
