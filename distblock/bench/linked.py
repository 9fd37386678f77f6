"""The pipeline and its rivals over a link: each worker, and each process of a rival, on a host of its own.

The hosts are namespaces of this machine; their links have a rate (a token bucket) and a delay. Nothing that distblock
sends waits for an answer of the next stage, so its bound is the smaller of what the slowest worker computes and what
the link carries; a schedule of back-propagation sends gradients back and waits for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distblock.bench.on_hosts import CHECKOUT, LIMIT_S, bits_per_s, check_hosts, line_rate
from distblock.bench.rivals.launch import Start
from distblock.bench.standings import Round, our_name
from distblock.bench.workers import Rates, Settings, measure_apart
from distblock.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from cluster.hosts import Hosts

CPUS_PER_WORKER = 2.0
"""Reserved, so that no host holds two workers, and the data worker fits beside the first alone."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Every host's.

    Attributes:
        rate: as tc writes it, or ``none``.
        delay_ms: from host to host, each way.
    """

    rate: str
    delay_ms: float


def check(num_hosts: int, rate: str) -> None:
    """Whether it can be measured here.

    Raises:
        InputError: it cannot.
    """
    if num_hosts < 2:
        raise InputError(f"--workers: expected 2 or more with --hosts, got {num_hosts}")
    bits_per_s(rate, "--rate")
    check_hosts()


def bytes_per_s(rate: str) -> float:
    """Of a link's rate, as tc writes it."""
    return bits_per_s(rate, "--rate") / 8


def measure(
    links: Sequence[Link],
    settings: Settings,
    *,
    rounds: int,
    folder: Path,
    rivals: Callable[[Start], Mapping[str, float]],
) -> Iterator[tuple[str, Round]]:
    """Rounds, all links in turn in each, with what the link is.

    Args:
        links: them.
        settings: of distblock's run.
        rounds: how many.
        folder: with the rivals' batches.
        rivals: measures them, given where their processes start.
    """
    for _ in range(rounds):
        for link in links:
            yield _round(link, settings, folder, rivals)


def _round(
    link: Link, settings: Settings, folder: Path, rivals: Callable[[Start], Mapping[str, float]]
) -> tuple[str, Round]:
    with on_hosts(link, settings, shared=[folder]) as (fleet, rates, carried):
        return _name(link), {
            our_name(settings.workers): rates.pipeline,
            "bound: the slowest worker's computing": rates.bound,
            "bound: what the link carries": carried,
            "bound: the smaller of the two": min(rates.bound, carried),
            **rivals(_starter(fleet)),
        }


@contextmanager
def on_hosts(link: Link, settings: Settings, *, shared: Sequence[Path] = ()) -> Iterator[tuple[Hosts, Rates, float]]:
    """Hosts, what distblock's run on them reached, and the samples per second that the link carries.

    Args:
        link: every host's.
        settings: of the run.
        shared: folders that all hosts see, beside the data.
    """
    from cluster import hosts as cluster_hosts

    one = _link(link)
    cpus = [int(CPUS_PER_WORKER) + 1] + [int(CPUS_PER_WORKER)] * (settings.workers - 1)
    with ExitStack() as stack:
        run = stack.enter_context(tempfile.TemporaryDirectory(prefix="distblock-bench-"))
        seen = [*shared, Path(run), Path(settings.data_path).resolve()]
        fleet = stack.enter_context(
            cluster_hosts.hosts([cluster_hosts.HostSettings(cpus=each, link=one) for each in cpus], shared=seen)
        )
        rates = _distblock(fleet, replace(settings, run_dir=f"{run}/run", data_path=str(seen[-1])))
        yield fleet, rates, line_rate(fleet) / rates.wire_bytes_per_sample


def _link(link: Link) -> Any:
    """An activation passes two links."""
    from cluster import hosts as cluster_hosts

    return cluster_hosts.Link(rate=None if link.rate == "none" else link.rate, delay_s=link.delay_ms / 2000)


def _name(link: Link) -> str:
    one = _link(link)
    burst = f", burst {one.burst}" if one.rate else ""
    return f"a link of {link.rate}{burst}, {link.delay_ms:g} ms each way"


def _distblock(fleet: Hosts, settings: Settings) -> Rates:
    there = replace(settings, alone=False, address=fleet.address, cpus_per_worker=CPUS_PER_WORKER)
    options = {"env": fleet.environment(0), "cwd": CHECKOUT, "timeout_s": LIMIT_S, "text": True}
    rates = measure_apart("workers", there, run=fleet.run, **options)
    data, *workers = rates.nodes
    if data != workers[0] or len(set(workers)) < len(workers):
        raise RunFailedError(
            f"bench pipeline: expected the data beside the first worker and a host for each, got data on {data} and"
            f" workers on {', '.join(workers)}"
        )
    return rates


def _starter(fleet: Hosts) -> Start:
    def start(command: Sequence[str], *, rank: int, environment: Mapping[str, str], stderr: Any) -> Any:
        own = {**fleet.environment(rank), "GLOO_SOCKET_IFNAME": "eth0", **environment}
        return fleet.popen(command, host=rank, env=own, cwd=CHECKOUT, stderr=stderr)

    return start
