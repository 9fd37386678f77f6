"""A plan as people read it: who does what, how fast it will be, why, and what was turned down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from distblock.planning.layout import Plan
from distblock.planning.profile import Profile


def plan_table(plan: Plan, profile: Profile) -> Table:
    """A row a worker."""
    table = Table(title="the plan" if plan.replicas == 1 else f"the plan, {plan.replicas} replicas of each worker")
    for heading in ("worker", "on", "blocks", "takes", "busy", "enters as", "bytes", "link takes", "memory"):
        table.add_column(heading, justify="right")
    for place, piece in enumerate(plan.pieces):
        names = [profile.blocks[block].name for block in piece.blocks]
        table.add_row(
            str(place),
            piece.seat.node,
            names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
            f"{piece.compute_s * 1000:.1f} ms",
            f"{piece.compute_s / plan.pace_s:.0%}",
            piece.codec if place else "images",
            f"{piece.wire_bytes / 1e6:.2f} MB",
            f"{piece.link_s * 1000:.1f} ms",
            f"{piece.memory_bytes / 1e6:,.0f} MB",
        )
    return table


def alternatives_table(plan: Plan, others: Mapping[str, Plan]) -> Table:
    """What was turned down, the best first."""
    table = Table(title="turned down")
    for heading in ("layout", "first blocks of stages", "samples/s", "of the plan's", "held back by"):
        table.add_column(heading, justify="right" if heading != "held back by" else "left")
    for name, other in sorted(others.items(), key=lambda each: each[1].pace_s):
        table.add_row(
            name,
            " ".join(map(str, other.cuts)) or "one stage",
            f"{other.samples_per_s:.0f}",
            f"{plan.pace_s / other.pace_s:.2f}",
            other.slowest,
        )
    return table


def profile_table(profile: Profile) -> Table:
    """A row a block."""
    table = Table(title=f"blocks, microbatches of {profile.num_samples}, medians")
    headings = ("block", "first of a stage", "further in", "classifier behind it", "leaves it", "state", "kept")
    for heading in headings:
        table.add_column(heading, justify="right")
    for block in profile.blocks:
        table.add_row(
            block.name,
            f"{block.first_s * 1000:.1f} ms",
            f"{block.inner_s * 1000:.1f} ms",
            f"{block.classifier_s * 1000:.1f} ms",
            f"{block.leaving_bytes / 1e6:.2f} MB",
            f"{block.state_bytes / 1e6:.2f} MB",
            f"{block.saved_bytes / 1e6:.1f} MB",
        )
    return table


def _replicas(plan: Plan) -> str:
    return "" if plan.replicas == 1 else f" with {plan.replicas} replicas"


def explain(plan: Plan, others: Mapping[str, Plan]) -> Sequence[str]:
    """In a few sentences."""
    number = len(plan.pieces)
    lines = [
        f"{number} worker{'s' if number > 1 else ''}{_replicas(plan)}, {plan.samples_per_s:.0f} samples/s:"
        f" {plan.pace_s * 1000:.1f} ms a microbatch, which is what {plan.slowest} takes."
    ]
    exposed = 1 - max(piece.compute_s for piece in plan.pieces) / plan.pace_s
    if plan.slowest.startswith("the link"):
        lines.append(f"The busiest worker waits {exposed:.0%} of its time for the link.")
    elif plan.slowest.startswith("the cores"):
        lines.append(f"All computing together is more than the cores can do; each worker is slowed by {exposed:.0%}.")
    single = others.get("1 worker")
    if single is not None:
        lines.append(f"That is {single.pace_s / plan.pace_s:.2f} times what one worker would reach.")
    return lines
