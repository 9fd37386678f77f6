"""Every metric that Prometheus sees, declared once: name, type, unit, labels, help.

The exporter builds what it serves from this list, and dashboards name these metrics: a metric that is not here does
not exist. A name carries its unit; a sum only grows and ends in ``_total``. The labels are the run, the stage or the
edge, if it belongs to one, and one more where the thing counted has kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distblock.metrics.histogram import border_s, nearest_border


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """One metric.

    Attributes:
        name: as Prometheus sees it.
        kind: a counter only grows; a gauge is the last value; a histogram counts by `BORDERS`.
        unit: ``bytes``, ``seconds`` or ``ratio``; empty for a count or a number without a unit.
        labels: names of its labels, in the order of their values.
        help: one line for people.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Literal["bytes", "seconds", "ratio", ""] = ""
    labels: tuple[str, ...]
    help: str


BORDERS = {border_s(border): border for border in (nearest_border(1e-4 * 2**step) for step in range(18))}
"""Seconds that bound a histogram's buckets, 0.1 ms to 13 s within 1 %, and which of `Histogram`'s own ones each is the
border of, so that every count is exact."""

_STAGE = ("run", "stage")
_PART = ("run", "stage", "part")
_EDGE = ("run", "edge")

MICROBATCHES = Metric(
    name="distblock_microbatches_total",
    kind="counter",
    labels=("run", "stage", "purpose"),
    help="Microbatches a stage is done with; purpose: train or evaluate.",
)
SAMPLES = Metric(
    name="distblock_samples_total",
    kind="counter",
    labels=("run", "stage", "purpose"),
    help="Samples a stage is done with; purpose: train or evaluate.",
)
COMPUTE = Metric(
    name="distblock_compute_seconds_total",
    kind="counter",
    unit="seconds",
    labels=_STAGE,
    help="Seconds a stage computed.",
)
IDLE = Metric(
    name="distblock_idle_seconds_total",
    kind="counter",
    unit="seconds",
    labels=_STAGE,
    help="Seconds a worker had nothing to compute; stage: the first one it hosts.",
)
LOSS = Metric(
    name="distblock_loss", kind="gauge", labels=_PART, help="Mean cross-entropy over the pass so far; part of the data."
)
ACCURACY = Metric(
    name="distblock_accuracy_ratio",
    kind="gauge",
    unit="ratio",
    labels=_PART,
    help="Share of samples classified right over the pass so far; part of the data.",
)
TRANSPORT_COST = Metric(
    name="distblock_transport_cost",
    kind="gauge",
    labels=_PART,
    help="Mean transport cost (the penalty on how far a stage moves its input) over the pass so far; part of the data.",
)
LEARNING_RATE = Metric(
    name="distblock_learning_rate", kind="gauge", labels=_STAGE, help="Learning rate of a stage's last step."
)
MULTIPLIER = Metric(
    name="distblock_multiplier",
    kind="gauge",
    labels=_STAGE,
    help="Lambda of a stage's last step, where the multiplier tunes itself: the transport cost weighs 1/lambda.",
)
PEAK_MEMORY = Metric(
    name="distblock_peak_memory_bytes",
    kind="gauge",
    unit="bytes",
    labels=_STAGE,
    help="Largest memory so far of the worker that hosts a stage: on its device, or of its process on a CPU.",
)
EPOCH = Metric(
    name="distblock_epoch", kind="gauge", labels=_STAGE, help="Epoch a stage is in, or evaluates, counted from 1."
)
HOPS = Metric(
    name="distblock_hops_total",
    kind="counter",
    labels=("run", "edge", "path"),
    help="Microbatches that crossed an edge; path: in_process, same_node or cross_node.",
)
PAST_STORE_HOPS = Metric(
    name="distblock_past_store_hops_total",
    kind="counter",
    labels=_EDGE,
    help="Those of the microbatches that came from worker to worker, past the object store.",
)
PAYLOAD = Metric(
    name="distblock_payload_bytes_total",
    kind="counter",
    unit="bytes",
    labels=_EDGE,
    help="Bytes of the activations that were sent, before the codec.",
)
WIRE = Metric(
    name="distblock_wire_bytes_total",
    kind="counter",
    unit="bytes",
    labels=_EDGE,
    help="Bytes that were stored to be sent: activations after the codec, and labels; 0 within one process.",
)
HOP_SECONDS = Metric(
    name="distblock_hop_seconds_total",
    kind="counter",
    unit="seconds",
    labels=("run", "edge", "phase"),
    help="Seconds of hops; phase: encode, put, fetch or decode.",
)
HOP_DURATION = Metric(
    name="distblock_hop_duration_seconds",
    kind="histogram",
    unit="seconds",
    labels=_EDGE,
    help="Seconds of each hop's own work: encode, put, fetch and decode; hops within one process left out.",
)
EXPOSED = Metric(
    name="distblock_exposed_seconds_total",
    kind="counter",
    unit="seconds",
    labels=_EDGE,
    help="Those of the seconds of fetch and decode in which the receiver idled.",
)
IN_TURN = Metric(
    name="distblock_in_turn_seconds_total",
    kind="counter",
    unit="seconds",
    labels=("run", "edge", "phase"),
    help="Those of the seconds of encode and decode that took their turn among what is computed.",
)
BACKPRESSURE = Metric(
    name="distblock_backpressure_seconds_total",
    kind="counter",
    unit="seconds",
    labels=_EDGE,
    help="Seconds a sender stood idle for want of a credit.",
)
DROPS = Metric(
    name="distblock_drops_total",
    kind="counter",
    labels=_EDGE,
    help="Microbatches that were dropped before their receiver, in the asynchronous regime.",
)
REUSES = Metric(
    name="distblock_reuses_total",
    kind="counter",
    labels=_STAGE,
    help="Microbatches that a stage trained on again, in the asynchronous regime.",
)
USES = Metric(
    name="distblock_uses_total",
    kind="counter",
    labels=_EDGE,
    help="Training microbatches that crossed an edge and were trained on, each counted again when it is used again.",
)
STALENESS = Metric(
    name="distblock_staleness_updates_total",
    kind="counter",
    labels=_EDGE,
    help="Staleness, summed over these uses: updates the sender has made since it made the activation.",
)
IN_FLIGHT = Metric(
    name="distblock_in_flight_microbatches",
    kind="gauge",
    labels=_EDGE,
    help="Microbatches sent on an edge whose credit has not yet returned.",
)
IN_FLIGHT_BYTES = Metric(
    name="distblock_in_flight_bytes", kind="gauge", unit="bytes", labels=_EDGE, help="Bytes of those microbatches."
)
LINE_RATE = Metric(
    name="distblock_line_rate_bytes",
    kind="gauge",
    unit="bytes",
    labels=_EDGE,
    help="Bytes a second that one TCP connection carried on an edge between two hosts, before the run began.",
)
DRIVER = Metric(
    name="distblock_driver_busy_seconds_total",
    kind="counter",
    unit="seconds",
    labels=("run",),
    help="Seconds in which the driver did not wait for the end of a call.",
)
FAILURES = Metric(
    name="distblock_failures_total",
    kind="counter",
    labels=("run", "kind"),
    help="Failures that the run has survived; kind: what happened, as in summary.json (worker_died, node_died, ...).",
)

CATALOGUE = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order above."""
