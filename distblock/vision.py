"""The one door to torchvision.

The package index builds torchvision for CUDA. Beside a CPU-only torch its operator library cannot load, and then
``import torchvision`` fails with "operator torchvision::nms does not exist", because it registers a shape rule for an
operator that nobody has defined. Defining the schemas of those operators first lets models, transforms and data sets
import; the operators themselves (box suppression) stay unusable, and nothing here uses them.

Every process of this package imports torchvision through this module.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load beside this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    libraries = sorted(Path(spec.origin).parent.glob("_C.*"))
    if not libraries:
        return False
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError:
        return False
    return True


def _define_missing_schemas() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


# Held for the life of the process: a collected library takes its definitions along.
_library = None if _operators_load() else _define_missing_schemas()

import torchvision  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

datasets = torchvision.datasets
models = torchvision.models

__all__ = ["datasets", "models", "torchvision", "v2"]
