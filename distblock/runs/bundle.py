"""A folder of files that exists as a whole or not at all, and tells when a bit of it has changed.

Object stores cannot rename folders, so "whole or not at all" rests on order: the manifest is written after all files,
and a bundle without a manifest does not exist. The manifest holds each file's checksum, and its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distblock.config import FORMAT_VERSION
from distblock.errors import InputError
from distblock.runs.directory import RunDirectory

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose manifest has been read.

    Attributes:
        directory: the run it belongs to.
        folder: its folder there.
        manifest: what was written about it.
    """

    directory: RunDirectory
    folder: str
    manifest: Mapping[str, Any]

    @property
    def files(self) -> list[str]:
        """Names of its files, in the order in which they were written."""
        return list(self.manifest["files"])

    def read(self, name: str) -> bytes:
        """A file, whole.

        Raises:
            InputError: it is missing, or is not what was written.
        """
        where = self.directory.path(f"{self.folder}/{name}")
        expected = self.manifest["files"][name]
        content = self.directory.read(f"{self.folder}/{name}")
        if len(content) != expected["num_bytes"]:
            raise InputError(f"{where}: expected {expected['num_bytes']} bytes, got {len(content)}: it is cut short")
        if (found := hashlib.sha256(content).hexdigest()) != expected["sha256"]:
            raise InputError(f"{where}: expected SHA-256 {expected['sha256']}, got {found}: it has been damaged")
        return content


def write_bundle(
    directory: RunDirectory, folder: str, files: Iterable[tuple[str, bytes]], manifest: Mapping[str, Any]
) -> None:
    """Write a bundle.

    Args:
        directory: the run it belongs to.
        folder: its folder there.
        files: name and content of each; one is held at a time.
        manifest: what there is to say about it.

    Raises:
        OSError: the storage does not take it.
    """
    sums: dict[str, dict[str, Any]] = {}
    for name, content in files:
        directory.write(f"{folder}/{name}", content)
        sums[name] = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    # As it will be read: tuples are lists by then.
    body = json.loads(json.dumps({"format_version": FORMAT_VERSION, **manifest, "files": sums}))
    directory.write(f"{folder}/{MANIFEST}", json.dumps({**body, "sha256": _sha256(body)}, indent=2).encode())


def read_bundle(directory: RunDirectory, folder: str) -> Bundle:
    """Open a bundle; its files are checked as they are read.

    Raises:
        InputError: there is none, or its manifest is not what was written.
    """
    where = directory.path(f"{folder}/{MANIFEST}")
    content = directory.read(f"{folder}/{MANIFEST}")
    try:
        manifest = json.loads(content)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
    except (UnicodeDecodeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: expected a whole JSON file, got: {error}") from None
    if body.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{where}: expected format_version {FORMAT_VERSION}, got {body.get('format_version')}")
    if manifest.get("sha256") != _sha256(body):
        raise InputError(f"{where}: its checksum does not fit: it has been damaged")
    return Bundle(directory=directory, folder=folder, manifest=manifest)


def _sha256(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
