"""A plan as the settings of a run."""

from __future__ import annotations

from ipaddress import ip_address

from distblock.config import Config, make_config
from distblock.planning.layout import Plan


def apply(plan: Plan, config: Config) -> Config:
    """The settings with a plan in them: explicit cuts, a worker a stage, each edge's codec, and workers' nodes if they
    are named by their addresses."""
    codecs = {place: piece.codec for place, piece in enumerate(plan.pieces) if place}
    own = {edge: codec for edge, codec in codecs.items() if codec != config.channel.codec}
    values = config.model_dump(mode="json", exclude_unset=True)
    values["model"] = {**values.get("model", {}), "cuts": list(plan.cuts)}
    values["model"].pop("stages", None)
    if not plan.cuts:
        values["model"] = {**values["model"], "stages": 1}
        values["model"].pop("cuts")
    if plan.replicas != config.replicas:
        values["replicas"] = plan.replicas
    values["resources"] = {**values.get("resources", {}), "workers": len(plan.pieces)}
    # Nodes of workers that there were before are not those of these.
    values["resources"].pop("nodes", None)
    nodes = [piece.seat.node for piece in plan.pieces]
    if plan.replicas == 1 and all(map(_is_address, nodes)):
        values["resources"]["nodes"] = nodes
    values["channel"] = {**values.get("channel", {}), **({"edge_codecs": own} if own else {})}
    if config.channel.codec == "auto":
        values["channel"]["codec"] = "fp32"
    return make_config(values)


def _is_address(node: str) -> bool:
    try:
        ip_address(node)
    except ValueError:
        return False
    return True
