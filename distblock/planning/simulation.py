"""A plan, told microbatch by microbatch through the driver's own rules: filling and draining, credits, shared links,
delays, workers that come and go. It reaches to numbers of workers and to links that no machine here has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distblock.messages import Item, Parcel
from distblock.schedule.credits import Limit
from distblock.schedule.replay import Absence, Call, Link, Pipeline, Told, replay

CALL_S = 0.001
"""Seconds from the driver's call to the worker's beginning, and from its end to the driver's knowing: 2 to 3 ms a hop
by ``distblock bench hop``, one by one."""

DRIVER_S = 0.0008
"""Seconds that the driver is busy with a call: its loop's share by ``distblock bench driver``."""


def simulate(
    compute_s: Sequence[float],
    *,
    microbatches: int,
    num_samples: int,
    wire_bytes: Sequence[float] = (),
    links: Mapping[int, Link] | None = None,
    absences: Sequence[Absence] = (),
    in_flight: int = 4,
    data_s: float = 0.0,
    per_call: int = 1,
    call_s: float = CALL_S,
    driver_s: float = DRIVER_S,
) -> Told:
    """Tell a run of one stream.

    Args:
        compute_s: seconds of a microbatch at each worker.
        microbatches: how many.
        num_samples: of each.
        wire_bytes: of a microbatch on the edge into each worker; none: they do not matter.
        links: what those edges pass, by the worker they enter; none: nothing that takes time.
        absences: of workers; place 1 is the first one.
        in_flight: parcels on an edge.
        data_s: seconds in which a microbatch is read.
        per_call: microbatches that go together in a parcel.
        call_s, driver_s: see `CALL_S` and `DRIVER_S`.
    """
    sizes = [int(each) for each in wire_bytes] or [0] * len(compute_s)
    each_s = (data_s, *compute_s)
    items = [Item.of_batch(number, num_samples) for number in range(microbatches)]

    def call(place: int, parcel: Parcel) -> Call:
        seconds = each_s[place] * len(parcel.items)
        return Call(send_s=call_s, fetch_s=0.0, compute_s=seconds, store_s=0.0, reply_s=call_s)

    return replay(
        Pipeline(
            parcels=[Parcel(tuple(items[start : start + per_call])) for start in range(0, microbatches, per_call)],
            call=call,
            limits=[Limit(count=in_flight, num_bytes=2**62)] * len(compute_s),
            size=lambda edge, parcel: sizes[edge] * len(parcel.items),
            driver_s=driver_s,
            links=links or {},
            absences=absences,
        )
    )
