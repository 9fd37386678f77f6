"""A run's final weights: a safetensors file a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from distblock.errors import InputError
from distblock.runs.bundle import MANIFEST, read_bundle, write_bundle
from distblock.runs.directory import RunDirectory

FINAL = "checkpoints/final"

State = dict[int, dict[str, np.ndarray]]
"""Weights and buffers, by stage, then by name."""


def write_weights(directory: RunDirectory, state: State, manifest: Mapping[str, Any]) -> None:
    """Write the final weights."""
    files = ((stage_file(stage), save_safetensors(arrays)) for stage, arrays in state.items())
    write_bundle(directory, FINAL, files, {**manifest, "stage_files": [stage_file(stage) for stage in state]})


def read_weights_manifest(directory: RunDirectory) -> Mapping[str, Any]:
    """The final weights' manifest.

    Raises:
        InputError: the run has no final weights.
    """
    if not directory.exists(f"{FINAL}/{MANIFEST}"):
        raise InputError(f"{directory.root}: no final weights there; expected a run that has ended in order")
    return read_bundle(directory, FINAL).manifest


def read_weights(directory: RunDirectory) -> State:
    """The final weights, by stage, then by name.

    Raises:
        InputError: there are none, or a file is damaged.
    """
    files = read_weights_manifest(directory)["stage_files"]
    bundle = read_bundle(directory, FINAL)
    return {stage: load_weights(bundle.read(name), origin=name) for stage, name in enumerate(files)}


def flatten(state: State) -> dict[str, np.ndarray]:
    """Stages' weights in one dictionary: ``network.<name>`` and ``classifier.<stage>.<name>``."""
    flat = {}
    for stage, arrays in state.items():
        for name, array in arrays.items():
            whose, _, rest = name.partition(".")
            flat[name if whose == "network" else f"classifier.{stage}.{rest}"] = array
    return flat


def load_weights(content: bytes, *, origin: str) -> dict[str, np.ndarray]:
    """Read safetensors; ``origin`` names the file in errors."""
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise InputError(f"{origin}: expected a whole safetensors file, got: {error}") from None


def stage_file(stage: int) -> str:
    """Name of a stage's file."""
    return f"stage-{stage:03d}.safetensors"
