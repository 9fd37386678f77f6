"""Which edges are offered from worker to worker, and what of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from distblock.config import Config
from distblock.errors import InputError
from distblock.learning.host import HostSpec
from distblock.messages import Line
from distblock.runtime.transports.outbox import Outbox


def check_encryption(config: Config) -> None:
    """Connections from worker to worker are not encrypted.

    Raises:
        InputError: they are asked for where Ray's own are.
    """
    if config.channel.transport == "worker" and _ray_encrypts():
        raise InputError(
            "channel.transport: worker sends activations unencrypted, and RAY_USE_TLS is set; expected object_store, or"
            " auto, which takes it then"
        )


def offered_edges(hosts: Sequence[HostSpec], lines: Sequence[Line]) -> frozenset[int]:
    """The edges whose senders offer what they hand out, by the stage that each enters.

    Args:
        hosts: what each worker hosts.
        lines: those between the run's nodes; where no connection came about, there is no rate.
    """
    transport = hosts[0].config.channel.transport
    if transport == "object_store" or _ray_encrypts():
        return frozenset()
    if transport == "worker":
        return frozenset(spec.stages.start for spec in hosts)
    return frozenset(line.edge for line in lines if line.rate_bytes_per_s is not None)


def open_outbox(config: Config, address: str) -> Outbox | None:
    """A worker's, on a node of that address; None: it cannot be listened at, and all goes through the object store."""
    channel = config.channel
    try:
        return Outbox(address, least_bytes=channel.past_store_bytes, most_bytes=channel.max_in_flight_bytes)
    except OSError:
        return None


def _ray_encrypts() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
