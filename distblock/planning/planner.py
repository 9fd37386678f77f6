"""The partition and placement with the highest throughput, by dynamic programming.

For a pace that no part may exceed, dynamic programming over the blocks finds the layout that computes least in all
(each stage has a classifier of its own, so more stages compute more); the pace is then the smallest that all parts
keep, or, where cores are short, one for which these suffice, too, found by bisection. With more workers than a node has
cores nobody has proved that no other layout is better; tests look at all there are of small networks.

Source: PipeDream's partitioner, Narayanan et al. 2019, doi:10.1145/3341301.3359646, section 3.1, for stages that pass
nothing back, and with codecs, memory and unequal workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, permutations

from distblock.config import Codec
from distblock.errors import InputError
from distblock.planning.costs import MARGIN, Costs
from distblock.planning.layout import Piece, Plan, Seat

_State = tuple[int, Codec | None]
"""How many blocks the first workers compute, and the codec behind these, if it takes its turn at its sender."""

MOST_ORDERS = 720
"""Orders of unequal workers that are tried; of more, the one by speed alone."""


class Planner:
    """Plans for one network.

    Args:
        costs: what layouts of it take.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    def best(self, seats: Sequence[Seat]) -> Plan:
        """The best one that uses some of the workers, or all; as for `by_count`."""
        return quickest(self.by_count(seats).values())

    def by_count(self, seats: Sequence[Seat]) -> dict[int, Plan]:
        """The best one of each number of workers that fits into their memory.

        Raises:
            InputError: none fits; the message has the numbers.
        """
        found: dict[int, Plan] = {}
        for count in range(1, min(len(seats), self.costs.num_blocks) + 1):
            plans = [plan for order in _orders(seats, count) if (plan := self._best_of(order)) is not None]
            if plans:
                found[count] = min(plans, key=lambda plan: plan.pace_s)
        if not found:
            raise InputError(self._why_none_fits(seats))
        return found

    def of_cuts(self, cuts: Sequence[int], seats: Sequence[Seat]) -> Plan:
        """A plan of given cuts, each edge with its best codec, whether or not it fits."""
        bounds = [0, *cuts, self.costs.num_blocks]
        return self.costs.of_blocks([range(*pair) for pair in pairwise(bounds)], seats)

    def _best_of(self, order: Sequence[Seat]) -> Plan | None:
        """With these workers in this order: the smallest pace at which everything keeps up."""
        paces = sorted({pace for pace in self._paces(order) if pace > 0})
        even = self._search(order, paces, computes_less=False)
        if even is None or even.pace_s <= max(max(piece.compute_s, piece.link_s) for piece in even.pieces):
            return even
        # Cores are what is short.
        less = self._search(order, paces, computes_less=True)
        return self._with_cuts_moved(even if less is None else quickest([even, less]), order)

    def _with_cuts_moved(self, plan: Plan, order: Sequence[Seat]) -> Plan:
        """With one cut after the other a block further, as long as that is quicker and fits."""
        while True:
            moved = [
                self.of_cuts([*plan.cuts[:place], cut, *plan.cuts[place + 1 :]], order)
                for place, own in enumerate(plan.cuts)
                for cut in (own - 1, own + 1)
                if cut not in (0, self.costs.num_blocks, *plan.cuts)
            ]
            best = min((other for other in moved if other.fits), key=lambda other: other.pace_s, default=plan)
            if best.pace_s >= plan.pace_s:
                return plan
            plan = best

    def _search(self, order: Sequence[Seat], paces: Sequence[float], *, computes_less: bool) -> Plan | None:
        """By bisection: the smallest pace that each part keeps, so that none is much slower than another; or, as a
        larger one leaves more freedom to compute less in all, one that the cores keep, too."""
        best: Plan | None = None
        low, high = 0, len(paces) - 1
        while low <= high:
            middle = (low + high) // 2
            pieces = self._least(order, paces[middle] * (1 + 1e-12))
            if pieces is None:
                low = middle + 1
                continue
            plan = self._with_best_codecs(self.costs.plan(pieces))
            best = plan if best is None or plan.pace_s < best.pace_s else best
            if computes_less and plan.pace_s > paces[middle] * (1 + 1e-9):
                low = middle + 1
            else:
                high = middle - 1
        return best

    def _with_best_codecs(self, plan: Plan) -> Plan:
        """The same stages with what suits them together, where that fits and is as quick."""
        other = self.costs.of_blocks([piece.blocks for piece in plan.pieces], [piece.seat for piece in plan.pieces])
        return other if other.fits and other.pace_s <= plan.pace_s * (1 + MARGIN) else plan

    def _paces(self, order: Sequence[Seat]) -> Iterator[float]:
        """All that some piece may take, and with what a codec of the next one has it do in turn."""
        for place, seat in enumerate(order):
            before = order[place - 1] if place else None
            sent = self._sent_in_turn(order, place)
            for start in range(self.costs.num_blocks) if place else [0]:
                for stop in range(start + 1, self.costs.num_blocks + 1):
                    for piece in self.costs.offered(range(start, stop), seat, before):
                        yield piece.compute_s
                        yield piece.link_s
                        yield from (piece.compute_s + each.turn_s for each in sent.get(stop, {}).values())

    def _least(self, order: Sequence[Seat], pace_s: float) -> list[Piece] | None:
        """The pieces that compute least in all, none of them slower than the pace and none too large."""
        count, num_blocks = len(order), self.costs.num_blocks
        # The least seconds, the last piece of it, and where that comes from.
        least: list[dict[_State, tuple[float, Piece | None, _State | None]]] = [{(0, None): (0.0, None, None)}]
        for place, seat in enumerate(order):
            row: dict[_State, tuple[float, Piece | None, _State | None]] = {}
            before = order[place - 1] if place else None
            sent = self._sent_in_turn(order, place)
            last_stop = num_blocks - (count - place - 1)
            for state, (so_far_s, _, _) in least[-1].items():
                start, codec = state
                for stop in [num_blocks] if place == count - 1 else range(start + 1, last_stop + 1):
                    piece = self._cheapest(range(start, stop), seat, before, pace_s, codec=codec)
                    if piece is None:
                        continue
                    total_s = so_far_s + piece.processor_s
                    for behind, each in {None: None, **sent.get(stop, {})}.items():
                        is_least = (stop, behind) not in row or total_s < row[stop, behind][0]
                        if is_least and self._keeps(piece, each, pace_s):
                            row[stop, behind] = total_s, piece, state
            least.append(row)
        return _followed_back(least, num_blocks)

    def _sent_in_turn(self, order: Sequence[Seat], place: int) -> dict[int, dict[Codec, Piece]]:
        """By the next worker's first block: a piece with each codec that takes its turn at this one."""
        if place == len(order) - 1:
            return {}
        return {
            start: {
                piece.codec: piece
                for piece in self.costs.offered(range(start, start + 1), order[place + 1], order[place])
                if piece.takes_turn
            }
            for start in range(1, self.costs.num_blocks)
        }

    def _keeps(self, piece: Piece, sent: Piece | None, pace_s: float) -> bool:
        """Pace and memory, with what it sends."""
        if sent is None:
            return True
        fits = self.costs.whole_bytes(piece, sent) <= piece.seat.memory_bytes
        return fits and piece.compute_s + sent.turn_s <= pace_s

    def _cheapest(
        self, blocks: range, seat: Seat, before: Seat | None, pace_s: float, *, codec: Codec | None
    ) -> Piece | None:
        """With a codec that takes its turn, to which its sender agreed, or with the first that takes none.

        None: it does not keep the pace, or does not fit.
        """
        for piece in self.costs.offered(blocks, seat, before):
            is_meant = not piece.takes_turn if codec is None else piece.codec == codec
            fits = is_meant and self.costs.whole_bytes(piece) <= seat.memory_bytes
            if fits and max(piece.compute_s, piece.link_s) <= pace_s:
                return piece
        return None

    def _why_none_fits(self, seats: Sequence[Seat]) -> str:
        alone = self.costs.least_bytes()
        count, most = min(len(seats), self.costs.num_blocks), max(seat.memory_bytes for seat in seats)
        return (
            f"plan: expected a layout over at most {count} workers of {most / 1e6:,.0f} MB, but none fits: a block"
            f" alone takes {min(alone) / 1e6:,.0f} to {max(alone) / 1e6:,.0f} MB,"
            f" {self.costs.base_bytes / 1e6:,.0f} MB of it the process; take more workers, more memory or smaller"
            " microbatches (--data.microbatch-size)"
        )


def _followed_back(
    least: Sequence[Mapping[_State, tuple[float, Piece | None, _State | None]]], num_blocks: int
) -> list[Piece] | None:
    """The pieces by which all blocks are computed; None: there are none."""
    pieces: list[Piece] = []
    state: _State | None = (num_blocks, None)
    for row in reversed(least[1:]):
        if state is None or state not in row:
            return None
        _, piece, state = row[state]
        assert piece is not None
        pieces.append(piece)
    return pieces[::-1]


def quickest(plans: Iterable[Plan]) -> Plan:
    """The one with the highest throughput; of equal ones that with the fewest workers."""
    return min(plans, key=lambda plan: (plan.pace_s, len(plan.pieces)))


def _orders(seats: Sequence[Seat], count: int) -> Iterator[tuple[Seat, ...]]:
    """The different ways to take so many workers in a row; equal ones are not told apart."""
    if len(set(seats)) == 1:
        yield tuple(seats[:count])
        return
    if math.perm(len(seats), count) > MOST_ORDERS:
        yield tuple(sorted(seats, key=lambda seat: -seat.speed)[:count])
        return
    yield from dict.fromkeys(permutations(seats, count))
