"""Joining a cluster, or starting one inside this process, and taking a run's share of it."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ray
import torch
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from distblock.config import Config
from distblock.errors import InputError, PreemptedError
from distblock.runtime.placement import Resources, check_feasible
from distblock.runtime.tokens import WHERE, check_token

PATIENCE_S = 10.0
"""Seconds between two words on what a run waits for."""

CONNECT_S = 10.0
"""Seconds in which a cluster's address has to take a connection."""


def check_machine(config: Config, needed: Sequence[Resources]) -> None:
    """Whether an embedded Ray could hold the bundles; an existing cluster is looked at once it is joined.

    Raises:
        InputError: this machine has too few GPUs, or workers' nodes are named. (CPUs of an embedded Ray are shares of a
            core, not cores.)
    """
    if config.address is None and not ray.is_initialized():
        if config.resources.nodes:
            raise InputError(
                f"resources.nodes: expected --address of the cluster that {config.resources.nodes[0]} is a node of, got"
                " none, which is an embedded Ray on this machine; set it, or leave resources.nodes out"
            )
        check_feasible(needed, [_embedded(needed)], strategy=config.resources.strategy)


@contextmanager
def joined(config: Config, needed: Sequence[Resources], *, may_wait: bool = False) -> Iterator[None]:
    """Connected to ``config.address``, to the Ray that this process already uses, or to an embedded one.

    Args:
        config: the run's settings.
        needed: the bundles.
        may_wait: the cluster has held them before, and may be short of a node now.

    Raises:
        InputError: there is no cluster at the address, or it can never hold the bundles.
    """
    ours = not ray.is_initialized()
    if ours:
        try:
            with sigterm_kept():
                _connect(config, needed)
        except PreemptedError:
            ray.shutdown()
            raise
    try:
        if not may_wait:
            check_feasible(needed, living(), strategy=config.resources.strategy)
        yield
    finally:
        if ours:
            ray.shutdown()


def living() -> list[Resources]:
    """Resources of each living node of the cluster, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def placed(needed: Sequence[Resources], *, strategy: str, note: Callable[[str], None]) -> Iterator[PlacementGroup]:
    """A placement group with the bundles; says every ten seconds what it waits for while others hold the resources."""
    group = placement_group([dict(bundle) for bundle in needed], strategy=strategy)
    try:
        while not group.wait(PATIENCE_S):
            free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
            nodes = sum(node["Alive"] for node in ray.nodes())
            note(f"waiting for {len(needed)} bundles {needed[0]}; free now: {free} on {nodes} nodes")
        yield group
    finally:
        remove_placement_group(group)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """While this process joins Ray, which puts a handler of its own in the place of whatever one there was.

    Raises:
        PreemptedError: SIGTERM came meanwhile.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise PreemptedError("told to end while it joined the cluster; nothing was done, start it again") from None
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _connect(config: Config, needed: Sequence[Resources]) -> None:
    # Ray would otherwise hide a GPU machine's devices from its zero-GPU actors with a warning for each.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A failed call has two results, of which the report's alone is read: Ray would log the other's error on exit.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if config.address is None:
        embed(num_cpus=math.ceil(_embedded(needed)["CPU"]))
    else:
        join(config.address)


def embed(num_cpus: int | None = None) -> None:
    """Start a Ray of this process's own, which ends with it.

    Args:
        num_cpus: shares of a core that it hands out; None: as many as there are cores.
    """
    # Processes that Ray starts ahead have another environment than a worker's, which starts one of its own.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def join(address: str) -> None:
    """Connect this process to a running cluster.

    Raises:
        InputError: there is none at the address, or it does not let this process in.
    """
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise InputError(f"address: expected a token for the cluster, got none; give it in {WHERE}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"address: expected a running Ray cluster at {address} that lets this process in, got: {reason}; see"
            f" that the Ray versions agree and that {WHERE} gives the cluster's token"
        ) from None


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes before it says that nobody is there, or that a token is wrong."""
    host, _, port = address.rpartition(":")
    try:
        # "auto" and its like Ray resolves.
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise InputError(
            f"address: expected a running Ray cluster at {address}, got: {error}; start one with ray start --head, or"
            " leave address out for an embedded Ray"
        ) from None
    check_token(address)


def _embedded(needed: Sequence[Resources]) -> Resources:
    return {"CPU": sum(bundle.get("CPU", 0) for bundle in needed), "GPU": torch.cuda.device_count()}
