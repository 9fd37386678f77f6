"""What a host is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.hosts.links import Link


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """One host.

    Attributes:
        cpus: what Ray may give away, or None: a host without a Ray node (a storage server, say).
        resources: further resources of the node.
        environment: for the node and what runs on the host, over the fleet's.
        link: to the bridge.
    """

    cpus: int | None = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    link: Link = field(default_factory=Link)
