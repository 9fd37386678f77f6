"""A stage's outputs over the data, set aside once a lap, for the next stage to train on.

Computing them anew each epoch costs a forward pass through every stage before; keeping them in memory costs what the
smallest machine does not have. Here they are Arrow IPC files, one a part of the data, with a record batch a
microbatch: written in one go, and read through a memory map, so that what is not touched is not loaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
from torch import Tensor

from distblock.codecs.cast import Features, decode, encode
from distblock.codecs.payload import Header, Payload, TensorHeader
from distblock.codecs.staging import Staging
from distblock.config import ChannelConfig
from distblock.errors import InputError
from distblock.messages import Departure, Item, Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Some samples of a cache, as they came from the codec.

    Attributes:
        headers: a header a tensor, with these rows' shape.
        arrays: the bytes, samples first.
    """

    headers: tuple[TensorHeader, ...]
    arrays: tuple[np.ndarray, ...]


class FeatureFile:
    """A finished file, mapped.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = reader.schema.metadata or {}
        tensors = json.loads(metadata[b"tensors"])
        self._headers = [TensorHeader(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in tensors]
        self._shapes = [tuple(shape) for shape in json.loads(metadata[b"shapes"])]
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._columns = [
            [batch.column(column).values.to_numpy().reshape(batch.num_rows, -1) for batch in batches]
            for column in range(len(tensors))
        ]
        rows = [batch.num_rows for batch in batches]
        self._ends = np.cumsum(rows)
        self._starts = self._ends - rows
        self.num_batches = len(batches)

    def take(self, positions: np.ndarray) -> Rows:
        """Samples by their place in the part's own order; a copy of these rows alone."""
        batch = np.searchsorted(self._ends, positions, side="right")
        row = positions - self._starts[batch]
        places = list(zip(batch.tolist(), row.tolist(), strict=True))
        arrays = []
        for column, shape in zip(self._columns, self._shapes, strict=True):
            taken = np.empty((len(positions), column[0].shape[1]), dtype=column[0].dtype)
            for index, (b, r) in enumerate(places):
                taken[index] = column[b][r]
            arrays.append(taken.reshape(len(positions), *shape))
        headers = tuple(replace(header, shape=(len(positions), *header.shape)) for header in self._headers)
        return Rows(headers=headers, arrays=tuple(arrays))


class _HashedFile:
    """A file to write, with the SHA-256 of what was written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def new_folder(run: str) -> str:
    """Name of a folder for a run's caches, on every node."""
    return f"distblock-{run}-{uuid.uuid4().hex[:12]}"


def folder_of(run: str, location: str) -> str:
    """Name of the folder for the caches of the run at a location."""
    return f"distblock-{run}-{hashlib.sha256(location.encode()).hexdigest()[:12]}"


class FeatureCache:
    """The files of a run on one node; its workers there have different files in one folder.

    Args:
        parent: where the folder lies; None: the system's temporary folder.
        run: the run's name.
        folder: the folder's name; it may be there already.

    Attributes:
        folder: its path.
        sha256: of each finished file of this process, by its name.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, parent: str | None, *, run: str, folder: str) -> None:
        self.folder = Path(parent or tempfile.gettempdir()) / folder
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InputError(f"regime.cache_dir: cannot make a folder in {parent}: {error}") from None
        self.sha256: dict[str, str] = {}
        self._run = run
        self._writers: dict[str, tuple[pa.ipc.RecordBatchFileWriter, _HashedFile]] = {}
        self._files: dict[Path, FeatureFile] = {}

    def store(
        self, item: Item, features: Features, labels: Tensor, *, channel: ChannelConfig, staging: Staging
    ) -> Departure:
        """Append a stage's output by its edge's codec; the items of a pass come in order, and its last one finishes the
        file.

        Returns:
            The sender's side of the hop; labels are not stored.
        """
        assert item.stage is not None
        edge = item.stage + 1
        begun_s = time.perf_counter()
        payload = encode(
            features,
            labels,
            codec=channel.codec_of(edge),
            run=self._run,
            edge=edge,
            number=item.number,
            staging=staging,
        )
        encoded_s = time.perf_counter()
        self._append(self.path(item.stage, item.lap, item.part), _record_batch(payload), is_last=item.closes_pass)
        return Departure(
            edge=edge,
            payload_bytes=payload.payload_bytes,
            wire_bytes=sum(array.nbytes for array in payload.arrays),
            encode_s=encoded_s - begun_s,
            put_s=time.perf_counter() - encoded_s,
        )

    def take(
        self, path: Path, item: Item, positions: np.ndarray, labels: np.ndarray, *, staging: Staging
    ) -> tuple[Features, Tensor]:
        """A microbatch out of a file, on the device.

        Args:
            path: a finished file, of this process or of another one on this node.
            item: the microbatch.
            positions: where its samples lie in their part's own order, int64 ``(N,)``.
            labels: int64 ``(N,)``.
            staging: copies to the device.
        """
        assert item.stage is not None
        rows = self._open(path).take(positions)
        header = Header(run=self._run, edge=item.stage, number=item.number, tensors=rows.headers)
        return decode(Payload(header=header, arrays=rows.arrays, labels=labels, payload_bytes=0), staging=staging)

    def path(self, stage: int, lap: int, part: Part) -> Path:
        """Where this process keeps a stage's outputs on a part, as it stood after a lap."""
        return self.folder / file_name(stage, lap, part)

    def num_batches(self, path: Path) -> int:
        """Microbatches that were stored in a file."""
        return self._open(path).num_batches

    def adopt(self, sha256: Mapping[str, str], *, unread: bool = False) -> None:
        """Take over the files that an earlier process has finished; those that are not whole are removed.

        Args:
            sha256: of each file, by its name.
            unread: trust in them without reading them.
        """
        for name, expected in sha256.items():
            path = self.folder / name
            if not path.exists():
                continue
            if unread or _sha256(path) == expected:
                self.sha256[name] = expected
            else:
                path.unlink()

    def _append(self, path: Path, batch: pa.RecordBatch, *, is_last: bool) -> None:
        partial = Path(f"{path}.partial")
        if path.name not in self._writers:
            file = _HashedFile(partial)
            self._writers[path.name] = pa.ipc.new_file(file, batch.schema), file
        self._writers[path.name][0].write_batch(batch)
        if is_last:
            writer, file = self._writers.pop(path.name)
            writer.close()
            file.close()
            partial.rename(path)
            self.sha256[path.name] = file.sha256

    def _open(self, path: Path) -> FeatureFile:
        if path not in self._files:
            self._files[path] = FeatureFile(path)
        return self._files[path]

    def release(self, stage: int, lap: int) -> None:
        """Free what a stage left after a lap."""
        for part in ("train", "validation", "test"):
            name = file_name(stage, lap, part)
            for path in [path for path in self._files if path.name == name]:
                del self._files[path]
            (self.folder / name).unlink(missing_ok=True)
            self.sha256.pop(name, None)

    def close(self) -> None:
        """Free everything."""
        self._files.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(stage: int, lap: int, *, expected: Collection[str], found: Collection[str]) -> bool:
    """Whether what a stage left after a lap is all there.

    Args:
        stage, lap: which.
        expected: names of the files that all stages have left.
        found: names of those that are there.
    """
    names = {file_name(stage, lap, part) for part in get_args(Part)}.intersection(expected)
    return bool(names) and names.issubset(found)


def file_name(stage: int, lap: int, part: Part) -> str:
    """Of a stage's outputs on a part, as it stood after a lap."""
    return f"stage-{stage:03d}-lap-{lap:03d}-{part}.arrow"


def _record_batch(payload: Payload) -> pa.RecordBatch:
    """A column a tensor, a row a sample; the arrays' own memory. The schema tells the shape of one sample."""
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.size // len(array))
        for array in payload.arrays
    ]
    headers = [{**asdict(header), "shape": header.shape[1:]} for header in payload.header.tensors]
    metadata = {"tensors": json.dumps(headers), "shapes": json.dumps([array.shape[1:] for array in payload.arrays])}
    fields = [pa.field(str(index), column.type) for index, column in enumerate(columns)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=metadata))
