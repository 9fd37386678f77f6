"""A run's directory: a local folder, or any place that pyarrow.fs reaches."""

from __future__ import annotations

import fcntl
import json
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from distblock.config import FORMAT_VERSION, Config, dump_config, make_config, parse_values
from distblock.errors import InputError

CONFIG = "config.yaml"
SUMMARY = "summary.json"
EARLY_EXIT = "early_exit.json"
METRICS = "metrics.parquet"
HOPS = "hops.parquet"
TIMELINE = "timeline.parquet"
TRACE = "trace.json"
REPORT = "report.html"
STATUS = "status.json"
RECENT = "recent.parquet"

_LOCK = ".lock"


@dataclass(frozen=True)
class RunDirectory:
    """Files of one run.

    Attributes:
        filesystem: where they are.
        root: the directory's path in it.
        uri: what it was named by, where that was a URI; without the keys that it may have held.
    """

    filesystem: fs.FileSystem
    root: str
    uri: str | None = None

    @property
    def location(self) -> str:
        """What a person would name it by."""
        return self.uri or self.root

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
        return cls(filesystem, root, _without_keys(str(location)))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.root.rstrip("/"))

    def create(self) -> bool:
        """Make the directory.

        Returns:
            Whether it was not there before.

        Raises:
            InputError: it holds a run already, or cannot be made.
        """
        self.check_free()
        try:
            is_new = self.filesystem.get_file_info(self.root).type == fs.FileType.NotFound
            self.filesystem.create_dir(self.root, recursive=True)
        except OSError as error:
            raise InputError(f"run_dir: cannot make {self.root}: {error}") from None
        return is_new

    def check_free(self) -> None:
        """Whether a run may begin here.

        Raises:
            InputError: it holds one already.
        """
        if self.exists(CONFIG):
            raise InputError(
                f"run_dir: {self.root} already holds a run; choose another --run-dir, remove it, or go on with it:"
                " distblock resume"
            )

    def withdraw(self, *, is_new: bool) -> None:
        """Remove what a run that never began has written; what cannot be removed stays.

        Args:
            is_new: the directory was not there before: it goes, too, if nothing else is in it.
        """
        with suppress(OSError):
            for name in (CONFIG, STATUS, RECENT, _LOCK):
                if self.exists(name):
                    self.filesystem.delete_file(self.path(name))
            if is_new and self.is_local:
                Path(self.root).rmdir()

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
        if not self.is_local:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        partial = Path(path + ".partial")
        try:
            partial.write_bytes(content)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        self.filesystem.move(str(partial), path)

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            InputError: there is no such file.
        """
        if not self.exists(name):
            raise InputError(f"{self.path(name)}: no such file; expected a run directory with {name}")
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.filesystem.delete_file(self.path(name))

    def folders(self, name: str) -> list[str]:
        """Names of the folders in a folder, in order; none if it is not there."""
        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def remove_folder(self, name: str, *, first: str) -> None:
        """Remove a folder; of its files, ``first`` goes first."""
        if self.exists(f"{name}/{first}"):
            self.remove(f"{name}/{first}")
        self.filesystem.delete_dir(self.path(name))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the only process that works on the run, where the file system is local; the lock goes with the process.

        Raises:
            InputError: another one does.
        """
        if not self.is_local:
            yield
            return
        with Path(self.path(_LOCK)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"run_dir: {self.root} is being trained by another process; wait for it") from None
            yield

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        self.write(name, parquet_bytes(table))

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own file systems, where a small file is written at once."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def keep_standing(self, status: Mapping[str, Any]) -> None:
        """Write what workers are at while the run is under way; a full disk is no reason to end it."""
        with suppress(OSError):
            self.write_json(STATUS, status)

    def keep_recent(self, content: bytes) -> None:
        """Likewise what has just happened."""
        with suppress(OSError):
            self.write(RECENT, content)

    def forget_standing(self) -> None:
        """It is under way no more."""
        with suppress(OSError):
            for name in (STATUS, RECENT):
                if self.is_local and self.exists(name):
                    self.remove(name)

    def read_table(self, name: str) -> pa.Table:
        """Read a Parquet file.

        Raises:
            InputError: there is no such file.
        """
        return pq.read_table(pa.BufferReader(self.read(name)))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file with the version of the format."""
        self.write(name, json.dumps({"format_version": FORMAT_VERSION, **content}, indent=2).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file."""
        return json.loads(self.read(name))

    def read_early_exit(self) -> dict[str, Any] | None:
        """What ``evaluate --early-exit`` has kept; None: it has not run, or one that knew no choice of stages has.

        Raises:
            InputError: the file is broken.
        """
        if not self.exists(EARLY_EXIT):
            return None
        try:
            found = self.read_json(EARLY_EXIT)
        except ValueError as error:
            where = self.path(EARLY_EXIT)
            raise InputError(
                f"{where}: expected what evaluate --early-exit writes, got no JSON ({error}); run it again"
            ) from None
        return found if isinstance(found, dict) and found.get("curve") else None

    def write_config(self, config: Config) -> None:
        """Write config.yaml; keys in a URI stay out of it."""
        if self.uri is not None:
            config = config.model_copy(update={"run_dir": self.uri})
        self.write(CONFIG, dump_config(config).encode())

    def read_config(self) -> Config:
        """Read config.yaml."""
        return make_config(parse_values(self.read(CONFIG).decode(), origin=self.path(CONFIG)))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _without_keys(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
