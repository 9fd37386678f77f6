"""``python -m cluster.hosts run ... -- COMMAND`` and ``python -m cluster.hosts clean``."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from cluster.hosts.fleet import Hosts
from cluster.hosts.leftovers import clean
from cluster.hosts.links import Counters, Link
from cluster.hosts.making import hosts
from cluster.hosts.requirements import missing
from cluster.hosts.settings import HostSettings


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit status, that of the command where one was run."""
    own, command = list(arguments), []
    if "--" in own:
        mark = own.index("--")
        own, command = own[:mark], own[mark + 1 :]
    parser = _parser()
    options = parser.parse_args(own)
    if options.verb == "clean":
        print("\n".join(clean()) or "nothing was left")
        return 0
    if not command:
        parser.error("expected the head's command after --, got none")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(options, command)
    except (RuntimeError, ValueError) as error:
        print(f"cluster.hosts: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    if (reason := missing()) is not None:
        raise RuntimeError(reason)
    with hosts(
        _settings(options),
        environment=dict(map(_variable, options.environment)),
        covered=options.covered,
        shared=options.shared,
        dashboard=options.dashboard,
    ) as fleet:
        for index, host in enumerate(fleet.settings):
            _say(f"host{index} {fleet.addresses[index]}: {host.cpus} CPUs, {host.link}")
        before = [fleet.counters(index) for index in range(len(fleet.settings))]
        status = fleet.run(command).returncode
        _tell_bytes(fleet, before)
    return status if status >= 0 else 128 - status


def _tell_bytes(fleet: Hosts, before: Sequence[Counters]) -> None:
    for index, earlier in enumerate(before):
        moved = fleet.counters(index) - earlier
        _say(f"host{index}: sent {moved.tx_bytes / 1e6:.1f} MB, received {moved.rx_bytes / 1e6:.1f} MB")


def _settings(options: argparse.Namespace) -> list[HostSettings]:
    columns = {name: _for_each(name, getattr(options, name), options.hosts) for name in ("cpus", "rate", "delay")}
    return [
        HostSettings(
            cpus=int(cpus),
            link=Link(rate=None if rate == "none" else rate, burst=options.burst, delay_s=_seconds(delay)),
        )
        for cpus, rate, delay in zip(*columns.values(), strict=True)
    ]


def _for_each(name: str, given: Sequence[str], num_hosts: int) -> list[str]:
    if len(given) not in (1, num_hosts):
        raise ValueError(f"--{name}: expected one value, or one for each of {num_hosts} hosts, got {len(given)}")
    return list(given) * (num_hosts if len(given) == 1 else 1)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--environment: expected NAME=VALUE, got {text!r}")
    return name, value


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if match is None:
        raise ValueError(f"--delay: expected a time such as 25ms or 0.1s, got {text!r}")
    return float(match[1]) * (0.001 if match[2] == "ms" else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.hosts", description="Several Ray hosts on one machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("clean", help="remove what fleets of dead owners have left")
    run = verbs.add_parser(
        "run",
        help="run a command on the head of a fleet",
        usage="%(prog)s [options] -- COMMAND",
        description="Values that a host has of its own: one for all hosts, or one each, the head's first.",
    )
    run.add_argument("--hosts", type=int, default=2)
    run.add_argument("--cpus", nargs="+", default=["1"], help="that Ray may give away; of each host")
    run.add_argument(
        "--rate", nargs="+", default=["none"], help="of each host's link, as tc writes it: 100mbit; or none"
    )
    run.add_argument("--burst", default="256kb", help="bytes that may pass a limited link at once")
    run.add_argument("--delay", nargs="+", default=["0ms"], help="of each host's link, each way: 25ms")
    run.add_argument("--covered", nargs="+", help="folders of which each host has its own; ./runs, /tmp, the cache")
    run.add_argument("--shared", nargs="+", default=[], help="folders that all share with this machine")
    run.add_argument("--environment", nargs="+", default=[], metavar="NAME=VALUE", help="for nodes and command")
    run.add_argument("--dashboard", action="store_true", help="dashboard and jobs API on the head, port 8265")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminated(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
