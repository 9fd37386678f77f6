"""The layouts that look best, tried: the quickest that fits, and whether it is quicker still with a block moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from distblock.config import Config
from distblock.errors import DistblockError, InputError, RunFailedError
from distblock.learning.blueprint import Build, Problem
from distblock.planning.costs import Costs
from distblock.planning.layout import Plan
from distblock.planning.planner import Planner
from distblock.planning.rehearsal import rehearse
from distblock.planning.settings import apply
from distblock.planning.stage_trial import Peers

MOST_TRIED = 3
"""Layouts that are tried; each takes some ten seconds."""

MOST_MOVES = 3
"""Blocks that are moved then, one after the other, each in a trial of its own."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A layout that was tried.

    Attributes:
        plan: with what its stages took.
        undisturbed: with what they took while nobody else used the machine. Layouts are tried one after the other, and
            so they are compared by this.
    """

    plan: Plan
    undisturbed: Plan


def try_out(
    plan: Plan,
    costs: Costs,
    config: Config,
    problem: Problem,
    *,
    build: Build | None = None,
    peers: Callable[..., Peers] | None = None,
) -> Tried:
    """A plan, with what its stages take of this machine when they run at once; as for `rehearse`."""
    nodes = [piece.seat.node for piece in plan.pieces]
    rehearsed = rehearse(apply(plan, config), problem, nodes=nodes, cores=costs.around.cores, build=build, peers=peers)
    return Tried(
        plan=costs.as_rehearsed(plan, rehearsed), undisturbed=costs.as_rehearsed(plan, rehearsed, undisturbed=True)
    )


class Trials:
    """Of layouts of one network.

    Args:
        planner: its.
        config: the run's settings.
        problem: what the network is built for.
        build, peers: as for `rehearse`.

    Attributes:
        done: by what they are.
        failed: names of those that could not be tried.
    """

    def __init__(
        self,
        planner: Planner,
        config: Config,
        problem: Problem,
        *,
        build: Build | None,
        peers: Callable[..., Peers] | None,
    ) -> None:
        self.done: dict[str, Tried] = {}
        self.failed: dict[str, DistblockError] = {}
        self._planner = planner
        self._try_out = lambda plan: try_out(plan, planner.costs, config, problem, build=build, peers=peers)

    def quickest(self, layouts: Mapping[str, Plan]) -> Tried:
        """Try the best of some layouts, then move blocks away from the worker that takes longest.

        Raises:
            InputError: none of them fits.
            RunFailedError: none of them could be tried.
        """
        for name in sorted(layouts, key=lambda name: layouts[name].pace_s):
            best_s = math.inf if self._best is None else self._best.undisturbed.pace_s
            if best_s <= layouts[name].pace_s or (len(self.done) >= MOST_TRIED and best_s < math.inf):
                break
            self._try(name, layouts[name])
        for _ in range(MOST_MOVES):
            best = self._best
            if best is None or not self._move_block(best, layouts) or self._best is best:
                break
        if self._best is None:
            raise (
                _why_none_fits(tried.plan for tried in self.done.values())
                if self.done
                else next(iter(self.failed.values()))
            )
        return self._best

    @property
    def _best(self) -> Tried | None:
        """Of those that fit; of equal ones that with the fewest workers."""
        fitting = [tried for tried in self.done.values() if tried.plan.fits]
        return min(fitting, key=lambda tried: (tried.undisturbed.pace_s, len(tried.plan.pieces)), default=None)

    def _try(self, name: str, plan: Plan) -> None:
        try:
            self.done[name] = self._try_out(plan)
        except (InputError, RunFailedError) as error:
            self.failed[name] = error

    def _move_block(self, tried: Tried, layouts: Mapping[str, Plan]) -> bool:
        """Try it with a block less for its slowest worker; whether there is such a layout that was not tried yet."""
        move = relieving_move(tried.undisturbed)
        if move is None:
            return False
        giver, taker = move
        moved = list(tried.plan.cuts)
        moved[max(move) - 1] += 1 if taker < giver else -1
        cuts = tuple(moved)
        seats = [piece.seat for piece in tried.plan.pieces]
        name = f"{len(seats)} workers, a block from worker {giver} to {taker} (first blocks {' '.join(map(str, cuts))})"
        known = next((name for name, layout in layouts.items() if layout.cuts == cuts), name)
        if known in {*self.done, *self.failed}:
            return False
        self._try(known, layouts[known] if known in layouts else self._planner.of_cuts(cuts, seats))
        return True


def relieving_move(plan: Plan) -> tuple[int, int] | None:
    """Who gives a block to whom, so that a plan may be quicker: the worker that computes longest to the one of those
    beside it that computes less; None where computing is not what holds it back, or there is no block to give."""
    seconds = [piece.compute_s for piece in plan.pieces]
    giver = seconds.index(max(seconds))
    beside = [place for place in (giver - 1, giver + 1) if 0 <= place < len(seconds)]
    if plan.pace_s > seconds[giver] or len(plan.pieces[giver].blocks) == 1 or not beside:
        return None
    return giver, min(beside, key=lambda place: seconds[place])


def _why_none_fits(tried: Iterable[Plan]) -> InputError:
    piece = max(min(tried, key=lambda plan: plan.memory_share).pieces, key=lambda piece: piece.memory_share)
    return InputError(
        f"plan: expected workers that take at most {piece.seat.memory_bytes / 1e6:,.0f} MB, but when it was tried,"
        f" blocks {piece.blocks.start} to {piece.blocks.stop - 1} took {piece.memory_bytes / 1e6:,.0f} MB; take"
        " more workers, more memory or smaller microbatches (--data.microbatch-size)"
    )
