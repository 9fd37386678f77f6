"""A plan, told as a run: how long some microbatches take, and what each worker does meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.table import Table

from distblock.planning.costs import seconds_by_node, shared_s
from distblock.planning.layout import Plan, Surroundings
from distblock.planning.simulation import simulate
from distblock.schedule.replay import Absence, Link, Span


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What is to be told of a plan.

    Attributes:
        microbatches: how many.
        delay_s: each way between two nodes.
        absences: of workers, in seconds from the beginning; place 1 is the first one.
        per_call: microbatches that go together.
        in_flight: parcels on an edge.
    """

    microbatches: int
    delay_s: float = 0.0
    absences: Sequence[Absence] = ()
    per_call: int = 1
    in_flight: int = 4


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a worker does, as shares of the whole time.

    Attributes:
        computing: with codecs that take their turn there.
        away: not there.
        waiting: neither.
        exposed: of that, while its next input was on the link: communication that nothing hides.
    """

    computing: float
    away: float
    waiting: float
    exposed: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A plan that was told.

    Attributes:
        wall_s: from the first call to the end of the last one.
        samples_per_s: over all of it.
        first_s: until the first microbatch has left the last worker.
        shares: of each worker.
    """

    wall_s: float
    samples_per_s: float
    first_s: float
    shares: tuple[Share, ...]


def forecast(plan: Plan, around: Surroundings, telling: Telling) -> Forecast:
    """Tell it through the driver's own rules.

    Edges between the same two nodes share a link, in each direction. Workers whose node has too few cores for them
    take as much longer as the plan says.
    """
    pieces = plan.pieces
    nodes = [pieces[0].seat.node, *(piece.seat.node for piece in pieces)]
    crossed = {place: pair for place, pair in enumerate(pairwise(nodes)) if pair[0] != pair[1]}
    told = simulate(
        _compute_s(plan, around),
        microbatches=telling.microbatches,
        num_samples=plan.num_samples,
        # Each row of replicas sends its share.
        wire_bytes=[piece.wire_bytes / plan.replicas for piece in pieces],
        links={
            place: Link(
                name=" to ".join(pair),
                bytes_per_s=around.link_bytes_per_s,
                delay_s=telling.delay_s,
            )
            for place, pair in crossed.items()
        },
        absences=telling.absences,
        in_flight=telling.in_flight,
        data_s=around.data_s / around.data_workers,
        per_call=telling.per_call,
    )
    by_place = [[span for span in told.spans if span.place == place] for place in range(1, len(pieces) + 1)]
    return Forecast(
        wall_s=told.wall_s,
        samples_per_s=telling.microbatches * plan.num_samples / told.wall_s,
        first_s=by_place[-1][0].stored_s,
        shares=tuple(
            _share(spans, [each for each in telling.absences if each.place == place], told.wall_s)
            for place, spans in enumerate(by_place, start=1)
        ),
    )


def forecast_sentence(found: Forecast, telling: Telling) -> str:
    """How long it takes."""
    return (
        f"Told as a run: {telling.microbatches} microbatches, {telling.per_call} a call, take {found.wall_s:.1f} s,"
        f" {found.samples_per_s:.0f} samples/s; the first is through after {found.first_s:.2f} s."
    )


def forecast_table(found: Forecast) -> Table:
    """A row a worker."""
    table = Table(title="what each worker does meanwhile")
    for heading in ("worker", "computes", "is away", "waits", "of it, for its link"):
        table.add_column(heading, justify="right")
    for place, share in enumerate(found.shares):
        shares = (share.computing, share.away, share.waiting, share.exposed)
        table.add_row(str(place), *(f"{each:.1%}" for each in shares))
    return table


def _compute_s(plan: Plan, around: Surroundings) -> list[float]:
    """Of each worker, as long as it takes beside the others of its node."""
    slower = {
        node: shared_s(seconds, around.cores) / max(seconds)
        for node, seconds in seconds_by_node(plan.pieces, around, plan.replicas).items()
    }
    return [piece.compute_s * slower[piece.seat.node] for piece in plan.pieces]


def _share(spans: Sequence[Span], absences: Sequence[Absence], wall_s: float) -> Share:
    def there_s(begin_s: float, end_s: float) -> float:
        """Of a stretch, that in which it is not away."""
        return max(0.0, end_s - begin_s) - _away_s(absences, begin_s, end_s)

    exposed_s, free_s = 0.0, 0.0
    for span in spans:
        exposed_s += there_s(max(span.asked_s, free_s), min(span.fetched_s, span.started_s))
        free_s = span.finished_s
    computing_s = sum(span.finished_s - span.started_s for span in spans)
    away_s = _away_s(absences, 0.0, wall_s)
    return Share(
        computing=computing_s / wall_s,
        away=away_s / wall_s,
        waiting=(wall_s - computing_s - away_s) / wall_s,
        exposed=exposed_s / wall_s,
    )


def _away_s(absences: Sequence[Absence], begin_s: float, end_s: float) -> float:
    return sum(max(0.0, min(each.end_s, end_s) - max(each.begin_s, begin_s)) for each in absences)
