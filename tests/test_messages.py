"""What travels arrives as it was."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, replace

import pytest

from distblock.messages import Arrival, DataReport, Departure, Item, Passage, StageReport, WorkerReport

ITEM = Item.of_batch(3, 16)
DEPARTURE = Departure(edge=1, payload_bytes=64, wire_bytes=32, encode_s=0.1, put_s=0.2)
PASSAGE = Passage(
    asked_s=1.0,
    fetched_s=2.0,
    decoded_s=3.0,
    started_s=4.0,
    finished_s=5.0,
    encoded_s=6.0,
    stored_s=7.0,
    wire_bytes=32,
)
REPORT = WorkerReport(
    worker=1,
    item=ITEM,
    stages=(
        StageReport(
            stage=1,
            role="train",
            loss_sum=1.5,
            transport_cost_sum=0.5,
            num_correct=7,
            num_samples=16,
            compute_s=0.25,
            lr=0.1,
        ),
    ),
    arrivals=(Arrival(edge=1, fetch_s=0.1, decode_s=0.2, exposed_s=0.3),),
    departures=(DEPARTURE,),
    started_s=4.0,
    finished_s=5.0,
    idle_s=0.5,
    peak_memory_bytes=1 << 20,
    node="10.0.0.1",
    reused=(1, 2),
    passage=PASSAGE,
)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "record", [REPORT, DataReport(item=ITEM, departures=(DEPARTURE,), node="10.0.0.1", passage=None)]
)
def test_a_record_arrives_as_it_was(record, protocol):
    arrived = pickle.loads(pickle.dumps(record, protocol=protocol))
    assert arrived == record
    assert hash(arrived) == hash(record)
    assert asdict(arrived) == asdict(record)
    assert copy.deepcopy(record) == record


def test_one_that_has_arrived_is_still_frozen():
    arrived = pickle.loads(pickle.dumps(ITEM))
    assert replace(arrived, number=4).number == 4
    with pytest.raises(AttributeError):
        arrived.number = 4
