"""A fleet's beginning and end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from cluster.hosts.files import make_view, mount_points
from cluster.hosts.fleet import Hosts
from cluster.hosts.leftovers import FOLDER_PREFIX
from cluster.hosts.links import DELAYED_MTU, Bridge, address
from cluster.hosts.nodes import fleet_nodes
from cluster.hosts.requirements import missing
from cluster.hosts.settings import HostSettings


@contextmanager
def hosts(
    settings: Sequence[HostSettings | int],
    *,
    environment: Mapping[str, str] | None = None,
    covered: Sequence[Path | str] | None = None,
    shared: Sequence[Path | str] = (),
    object_store_bytes: int = 2**30,
    dashboard: bool = False,
) -> Iterator[Hosts]:
    """Hosts with a Ray node each, joined to one cluster with token authentication; all gone afterwards.

    Args:
        settings: one a host, the head first; a number is so many CPUs on an unlimited link.
        environment: for all nodes and commands, over this process's (``RAY_health_check_period_ms``, say).
        covered: folders over which each host has an empty one of its own; by default ``./runs``, ``/tmp`` and the
            user's cache.
        shared: folders that all hosts and this machine share, covered or not.
        object_store_bytes: of each node.
        dashboard: whether the head runs the dashboard and the jobs API, at port 8265, for all hosts.

    Raises:
        ValueError: something that hosts need was to be covered, or there are Ray nodes, but none on the first host.
        RuntimeError: this machine cannot make hosts, or a node did not start.
    """
    full = [HostSettings(cpus=entry) if isinstance(entry, int) else entry for entry in settings]
    nodes = [index for index, host in enumerate(full) if host.cpus is not None]
    if nodes and nodes[0] != 0:
        raise ValueError(f"settings: expected the head's Ray node on the first host, got nodes on hosts {nodes} alone")
    if (reason := missing()) is not None:
        raise RuntimeError(reason)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")))
        view = make_view(covered=covered, shared=[*shared, folder])
        stack.enter_context(mount_points(view))
        delayed = any(host.link.delay_s for host in full)
        bridge = stack.enter_context(closing(Bridge(DELAYED_MTU if delayed else None)))
        node = fleet_nodes(folder, environment or {}, object_store_bytes, dashboard)
        fleet = stack.enter_context(closing(Hosts(full, bridge, node)))
        fleet.make(view, _names(folder, len(full)))
        fleet.start(nodes[:1])
        fleet.start(nodes[1:])
        yield fleet


def _names(folder: Path, num_hosts: int) -> Path:
    names = folder / "hosts"
    lines = ["127.0.0.1 localhost", *(f"{address(index)} host{index}" for index in range(num_hosts))]
    names.write_text("\n".join([*lines, ""]))
    return names
