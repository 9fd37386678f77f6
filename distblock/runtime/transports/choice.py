"""Which edges are offered from worker to worker, and what of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distblock.config import Config
from distblock.config.running import ray_encrypts
from distblock.errors import InputError
from distblock.learning.host import HostSpec
from distblock.messages import Line
from distblock.runtime.transports.outbox import Outbox


def check_encryption(config: Config) -> None:
    """Connections from worker to worker are not encrypted.

    Raises:
        InputError: they are asked for where Ray's own are.
    """
    if config.channel.transport == "worker" and ray_encrypts():
        raise InputError(
            "channel.transport: worker sends activations unencrypted, and RAY_USE_TLS is set; expected object_store, or"
            " auto, which takes it then"
        )


def offered_edges(hosts: Sequence[HostSpec], lines: Sequence[Line]) -> frozenset[int]:
    """The edges whose senders may offer what they hand out, by the stage that each enters.

    Args:
        hosts: what each worker hosts.
        lines: those between the run's nodes; where no connection came about, there is no rate.
    """
    channel = hosts[0].config.channel
    if math.isinf(channel.past_store_bytes):
        return frozenset()
    if channel.transport == "worker":
        return frozenset(spec.stages.start for spec in hosts)
    return frozenset(line.edge for line in lines if line.rate_bytes_per_s is not None)


def open_outbox(config: Config, address: str, *, most: int) -> Outbox | None:
    """A sender's, on a node of that address; None: it cannot be listened at, and all goes through the object store.

    Args:
        config: the run's settings.
        address: of its node.
        most: things that can be in flight on its edge.
    """
    try:
        return Outbox(address, least_bytes=config.channel.past_store_bytes, most=most)
    except OSError:
        return None
