"""Images in Parquet files as Hugging Face lays them out, read by row group, so that a file may outgrow memory."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from distblock.data.sources import decode
from distblock.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")


class ParquetSource:
    """One file.

    Args:
        filesystem: where it is.
        path: its path there.
        memory_bytes: most bytes of images held at once; a row group always is.
        is_labelled: labels are read; without, all are 0.

    Raises:
        DataError: it is missing, broken, or lacks the columns.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, *, memory_bytes: int, is_labelled: bool = True) -> None:
        self.path = path
        self._file = _open(filesystem, path)
        self._image_column = self._column(IMAGE_COLUMNS, "struct<bytes, path>")
        kind = self._file.schema_arrow.field(self._image_column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise DataError(f"{path}: expected column {self._image_column} to be struct<bytes, path>, got {kind}")
        metadata = self._file.metadata
        self._label_column = self._column(LABEL_COLUMNS, "whole numbers") if is_labelled else ""
        self.labels = self._read_labels(self._label_column) if is_labelled else np.zeros(metadata.num_rows, np.int64)
        self.groups: Sequence[int] = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(self.groups)])
        largest = max((metadata.row_group(index).total_byte_size for index in range(len(self.groups))), default=1)
        self.window = max(1, memory_bytes // largest)
        self.class_names = _class_names(self._file.schema_arrow, self._label_column)
        self._held: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            DataError: it does not decode.
        """
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        value = self._read_group(group)[index - int(self._starts[group])].as_py()
        content = (value or {}).get("bytes") or b""
        return decode(io.BytesIO(content), self.where(index))

    def where(self, index: int) -> str:
        """File and row."""
        return f"{self.path}, row {index}"

    def _read_group(self, group: int) -> pa.ChunkedArray:
        if group in self._held:
            self._held.move_to_end(group)
        else:
            try:
                table = self._file.read_row_group(group, columns=[self._image_column])
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.path}: row group {group} cannot be read: {_one_line(error)}") from None
            self._held[group] = table.column(0)
            while len(self._held) > self.window:
                self._held.popitem(last=False)
        return self._held[group]

    def _column(self, names: Sequence[str], kind: str) -> str:
        there = self._file.schema_arrow.names
        found = next((name for name in names if name in there), None)
        if found is None:
            raise DataError(
                f"{self.path}: expected a column {' or '.join(names)} ({kind}), got columns {', '.join(there)}"
            )
        return found

    def _read_labels(self, column: str) -> np.ndarray:
        try:
            labels = self._file.read(columns=[column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: column {column} cannot be read: {_one_line(error)}") from None
        if not pa.types.is_integer(labels.type) or labels.null_count:
            kind = f"{labels.null_count} nulls" if labels.null_count else str(labels.type)
            raise DataError(f"{self.path}: expected whole numbers in column {column}, got {kind}")
        return labels.to_numpy().astype(np.int64)


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a local path or URI.

    Raises:
        DataError: no file system is known for it.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(path)
    try:
        filesystem, root = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"data.path: expected a folder or a URI that pyarrow.fs reaches, got {path}: {_one_line(error)}"
        ) from None
    return filesystem, root


def _open(filesystem: fs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected train.parquet and test.parquet in the folder data.path"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a whole Parquet file, got: {_one_line(error)}") from None


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        return tuple(metadata[b"class_names"].decode().split(","))
    if b"huggingface" in metadata:
        features: dict[str, Any] = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        names = features.get(label_column, {}).get("names")
        return tuple(names) if names else None
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
