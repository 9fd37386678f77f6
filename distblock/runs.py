"""A run's directory: a local folder, or any place that pyarrow.fs reaches.

Object stores cannot rename, so "whole or not at all" rests on order: a checkpoint's manifest is written after all its
files, and a checkpoint without a manifest does not exist.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from distblock.config import FORMAT_VERSION, Config, dump_config, make_config, parse_values
from distblock.errors import InputError

CONFIG = "config.yaml"
SUMMARY = "summary.json"
METRICS = "metrics.parquet"
HOPS = "hops.parquet"
FINAL = "checkpoints/final"

LONGEST_NAME = 100

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

State = dict[int, dict[str, np.ndarray]]
"""Weights and buffers, by stage, then by name."""


@dataclass(frozen=True)
class RunDirectory:
    """Files of one run.

    Attributes:
        filesystem: where they are.
        root: the directory's path in it.
    """

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def at(cls, location: str | Path) -> RunDirectory:
        """By local path or URI.

        Raises:
            InputError: no file system is known for the URI, or it cannot be reached.
        """
        if "://" not in str(location):
            return cls(fs.LocalFileSystem(), str(Path(location).expanduser().resolve()))
        try:
            filesystem, root = fs.FileSystem.from_uri(str(location))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"run_dir: expected a local path or a URI that pyarrow.fs reaches, got {location}: {error}"
            ) from None
        return cls(filesystem, root)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.root.rstrip("/"))

    def create(self) -> None:
        """Make the directory.

        Raises:
            InputError: it holds a run already, or cannot be made.
        """
        if self.exists(CONFIG):
            raise InputError(f"run_dir: {self.root} already holds a run; choose another --run-dir, or remove it")
        try:
            self.filesystem.create_dir(self.root, recursive=True)
        except OSError as error:
            raise InputError(f"run_dir: cannot make {self.root}: {error}") from None

    def path(self, name: str) -> str:
        """A file's path in the file system."""
        return posixpath.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound

    def write(self, name: str, content: bytes) -> None:
        """Write a file; on a local disk it appears whole."""
        path = self.path(name)
        self.filesystem.create_dir(posixpath.dirname(path), recursive=True)
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        Path(path + ".partial").write_bytes(content)
        self.filesystem.move(path + ".partial", path)

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            InputError: there is no such file.
        """
        if not self.exists(name):
            raise InputError(f"{self.path(name)}: no such file; expected a run directory with {name}")
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.write(name, sink.getvalue().to_pybytes())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file with the version of the format."""
        self.write(name, json.dumps({"format_version": FORMAT_VERSION, **content}, indent=2).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file."""
        return json.loads(self.read(name))

    def write_config(self, config: Config) -> None:
        """Write config.yaml."""
        self.write(CONFIG, dump_config(config).encode())

    def read_config(self) -> Config:
        """Read config.yaml."""
        return make_config(parse_values(self.read(CONFIG).decode(), origin=self.path(CONFIG)))

    def write_checkpoint(self, state: State, manifest: dict[str, Any]) -> None:
        """Write the final weights: a safetensors file a stage, then the manifest that names them."""
        for stage, arrays in state.items():
            self.write(f"{FINAL}/{_stage_file(stage)}", save_safetensors(arrays))
        self.write_json(f"{FINAL}/manifest.json", {**manifest, "stage_files": [_stage_file(stage) for stage in state]})

    def read_manifest(self) -> dict[str, Any]:
        """The final weights' manifest.

        Raises:
            InputError: the run has no final weights.
        """
        if not self.exists(f"{FINAL}/manifest.json"):
            raise InputError(f"{self.root}: no final weights there; expected a run that has ended in order")
        return self.read_json(f"{FINAL}/manifest.json")

    def read_state(self) -> State:
        """The final weights, by stage, then by name.

        Raises:
            InputError: there are none, or a file is damaged.
        """
        files = self.read_manifest()["stage_files"]
        return {stage: load_weights(self.read(f"{FINAL}/{name}"), origin=name) for stage, name in enumerate(files)}


def default_name(config: Config) -> str:
    """What a run is called that nobody named: when it began, its data and its network."""
    return _NOT_IN_NAMES.sub("-", f"{datetime.now():%Y%m%d-%H%M%S}-{config.data.name}-{config.model.name}")


def check_name(name: str, *, where: str) -> str:
    """A run's name is one folder's: it cannot lead out of the folder of runs.

    Raises:
        InputError: it is empty, too long, hidden, or has other characters; ``where`` says who gave it.
    """
    if not name or len(name) > LONGEST_NAME or name.startswith((".", "-")) or _NOT_IN_NAMES.search(name):
        raise InputError(
            f"{where}: expected a name of up to {LONGEST_NAME} letters, digits, dots, hyphens and underscores,"
            f" a letter, a digit or an underscore first, got {name!r}"
        )
    return name


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


def _stage_file(stage: int) -> str:
    return f"stage-{stage:03d}.safetensors"
