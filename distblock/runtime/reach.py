"""Whether a node sees the run's storage: the very folder, not another one of the same name.

A local path "works" on every host, and each may mean a disk of its own. So the driver writes a file of random content,
and whoever is to use the storage reads it, through the same file system object, which is pickled along. The file's
name is new each time: no cache of a network file system can know that it is missing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ray.cloudpickle.cloudpickle import dumps, loads

from distblock.data.listing import Listing, difference
from distblock.errors import DataError, InputError, StorageError

TRIES_S = (0.0, 0.5, 1.0, 2.0)
"""Seconds before each try: a network file system may show a new file a moment later on another host."""

SHARED = "a folder that all nodes share"


class Storage(Protocol):
    """A run's directory, as far as it is needed here; `distblock.runs.RunDirectory` is one."""

    @property
    def location(self) -> str:
        """What a person would name it by."""
        ...

    def path(self, name: str) -> str:
        """A file's path."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, name: str) -> bytes:
        """A file's content."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...


@dataclass(frozen=True, kw_only=True)
class Token:
    """A file by which the storage is known.

    Attributes:
        name: its name in the run's directory.
        content: what is in it.
    """

    name: str
    content: bytes


def packed(storage: Storage) -> bytes:
    """The storage as other processes take it up.

    Raises:
        InputError: its file system cannot be pickled.
    """
    try:
        return dumps(storage)
    except Exception as error:  # a file system of the user's own may raise anything
        raise InputError(
            "RunConfig.storage_filesystem: expected one that can be pickled, for workers on other nodes use it too,"
            f" got: {_in_words(error)}; give it a __reduce__, or leave it out and name the storage by a URI"
        ) from None


@contextmanager
def token(storage: Storage, *, note: Callable[[str], None]) -> Iterator[Token]:
    """A file that only this storage has, for as long as the block lasts.

    Args:
        storage: where.
        note: is told if it cannot be removed.

    Raises:
        StorageError: it cannot be written.
    """
    made = Token(name=f".reach-{secrets.token_hex(4)}", content=secrets.token_hex(32).encode())
    _write(storage, made)
    try:
        yield made
    finally:
        try:
            storage.remove(made.name)
        except Exception as error:  # a file system of the user's own may raise anything
            note(f"{storage.path(made.name)} could not be removed: {_in_words(error)}")


def look(pickled: bytes, expected: Token, *, tries_s: tuple[float, ...] = TRIES_S) -> str | None:
    """See from here what the driver has written.

    Args:
        pickled: the storage.
        expected: the file.
        tries_s: seconds before each try.

    Returns:
        What is there instead, in words; None: it is there.
    """
    try:
        storage: Storage = loads(pickled)
    except Exception as error:  # whatever the user's own class needs may be missing here
        return f"a file system that cannot be unpickled there: {_in_words(error)}"
    problem = None
    for wait_s in tries_s:
        time.sleep(wait_s)
        problem = _problem(storage, expected)
        if problem is None:
            break
    return problem


def storage_refusal(storage: Storage, wrong: Mapping[str, str], *, driver: str) -> InputError:
    """What to say of nodes that do not see the run's storage.

    Args:
        storage: the run's.
        wrong: the nodes, and what each found.
        driver: the driver's host.
    """
    (node, got), *others = wrong.items()
    also = f" (nor does {', '.join(node for node, _ in others)})" if others else ""
    return InputError(
        f"run_dir: expected node {node} to see in {storage.location} what the driver on {driver} has written there,"
        f" got {got}{also}; give --run-dir {SHARED}, or a URI such as s3://bucket/runs/name"
    )


def data_refusal(expected: Listing, got: Listing | str, *, node: str, driver: str) -> DataError | None:
    """What to say of a data worker's node that does not see the data; None: it does.

    Args:
        expected: what the driver sees.
        got: what the node sees, or why it sees nothing.
        node, driver: the node, and the driver's host.
    """
    if isinstance(got, str):
        where, differs = expected.where, f"got {got}"
    else:
        where, differs = got.where, difference(expected, got)
    if differs is None:
        return None
    return DataError(
        f"data.path: expected node {node} to see in {where} the files that the driver on {driver} sees, but it does"
        f" not: {differs}; give --data.path {SHARED}, or the same files on every node of a data worker, or for"
        " parquet a URI such as s3://bucket/data"
    )


def _write(storage: Storage, token: Token) -> None:
    cause = None
    for wait_s in TRIES_S:
        time.sleep(wait_s)
        try:
            storage.write(token.name, token.content)
        except Exception as error:  # a file system of the user's own may raise anything
            cause = _in_words(error)
        else:
            return
    raise StorageError(f"{storage.path(token.name)} cannot be written: {cause}")


def _problem(storage: Storage, expected: Token) -> str | None:
    path = storage.path(expected.name)
    try:
        if not storage.exists(expected.name):
            return f"no {path}"
        is_same = storage.read(expected.name) == expected.content
    except Exception as error:  # a file system of the user's own may raise anything
        return f"{path}: {_in_words(error)}"
    return None if is_same else f"other content in {path}"


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
