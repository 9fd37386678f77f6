"""Layouts of made-up networks: against all layouts there are, and against what a hand works out."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from planning.networks import network

from distblock.config import Codec
from distblock.errors import InputError
from distblock.planning.costs import MARGIN, Costs, seconds_by_node, shared_s
from distblock.planning.layout import Plan, Rehearsed, Seat, Surroundings
from distblock.planning.planner import Planner
from distblock.planning.profile import CodecProfile, Profile

AROUND = Surroundings(cores=64, link_bytes_per_s=1e8, memcpy_bytes_per_s=1e10)


def seats(count: int, **what: float) -> list[Seat]:
    return [Seat(**what) for _ in range(count)]  # type: ignore[arg-type]


def test_each_block_to_its_worker_where_there_are_enough():
    plan = Planner(Costs(network(0.01, 0.01, 0.01), AROUND, codecs=["fp32"])).best(seats(3))
    assert plan.cuts == (1, 2)
    assert plan.samples_per_s == pytest.approx(64 / 0.009)


def test_a_heavy_block_stands_alone():
    plan = Planner(Costs(network(0.01, 0.01, 0.05, 0.01, 0.01), AROUND, codecs=["fp32"])).best(seats(3))
    assert plan.cuts == (2, 3)
    assert plan.slowest.startswith("worker 1")


# Seed 31: three workers share two cores.
@pytest.mark.parametrize("seed", [*range(12), 31])
def test_no_layout_of_all_there_are_is_better(seed: int):
    draw = random.Random(seed)
    profile = network(*(draw.uniform(0.001, 0.02) for _ in range(7)), leaving=draw.choice([1000, 500_000]))
    around = Surroundings(cores=draw.choice([2, 64]), link_bytes_per_s=1e8, memcpy_bytes_per_s=1e10, call_s=1e-3)
    workers = [Seat(node=draw.choice("ab"), speed=draw.choice([0.5, 1.0])) for _ in range(4)]
    planner = Planner(Costs(profile, around, codecs=["fp32"]))
    found = planner.best(workers)
    every = [
        planner.of_cuts(cuts, order).pace_s
        for count in range(1, 5)
        for order in itertools.permutations(workers, count)
        for cuts in itertools.combinations(range(1, 7), count - 1)
    ]
    assert found.pace_s == pytest.approx(min(every), rel=1e-9)


@pytest.mark.parametrize("codecs", [("diff4",), ("fp32", "int8", "diff4")])
@pytest.mark.parametrize("seed", range(4))
def test_no_codecs_at_any_cuts_are_better_by_more_than_the_margin(codecs: tuple[Codec, ...], seed: int):
    draw = random.Random(seed)
    profile = network(*(draw.uniform(0.001, 0.02) for _ in range(5)), leaving=draw.choice([1000, 500_000, 2_000_000]))
    own = CodecProfile(encode_s=draw.choice([1e-9, 5e-9, 2e-8]), decode_s=2e-9, share=0.13)
    profile = replace(profile, codecs={**profile.codecs, "diff4": own})
    workers = [Seat(node=draw.choice("ab"), speed=draw.choice([0.5, 1.0])) for _ in range(3)]
    costs = Costs(profile, replace(AROUND, call_s=1e-3), codecs=codecs)
    every = []
    for count in range(1, 4):
        for order in itertools.permutations(workers, count):
            for cuts in itertools.combinations(range(1, 5), count - 1):
                blocks = [range(*pair) for pair in itertools.pairwise([0, *cuts, 5])]
                offered = [list(costs.offered(*each)) for each in zip(blocks, order, [None, *order[:-1]], strict=True)]
                every += [costs.plan(pieces).pace_s for pieces in itertools.product(*offered)]
    assert min(every) * (1 - 1e-9) <= Planner(costs).best(workers).pace_s <= min(every) * (1 + MARGIN + 1e-9)


def test_a_codec_that_takes_its_turn_is_no_reason_to_refuse_two_workers():
    profile = network(0.1, 0.01, leaving=20_000_000)
    own = CodecProfile(encode_s=5e-9, decode_s=2e-9, share=0.13)
    profile = replace(profile, codecs={**profile.codecs, "diff4": own})
    plans = Planner(Costs(profile, AROUND, codecs=["diff4"])).by_count([Seat(node="a"), Seat(node="b")])
    # The first one's step, 0.081 s, and 0.1 to encode.
    assert plans[2].pace_s == pytest.approx(0.181)


def test_a_worker_at_half_speed_gets_half():
    workers = [Seat(speed=1.0), Seat(speed=0.5)]
    plan = Planner(Costs(network(*[0.01] * 9), AROUND, codecs=["fp32"])).best(workers)
    by_speed = {piece.seat.speed: len(piece.blocks) for piece in plan.pieces}
    assert by_speed == {1.0: 6, 0.5: 3}


def test_a_codec_is_taken_where_the_link_holds_back_and_not_within_a_node():
    profile = network(0.01, 0.01, 0.01, leaving=1_500_000)
    workers = [Seat(node="a"), Seat(node="a"), Seat(node="b")]
    plan = Planner(Costs(profile, AROUND, codecs=["fp32", "int8"])).best(workers)
    by_edge = {(before.seat.node, after.seat.node): after.codec for before, after in itertools.pairwise(plan.pieces)}
    assert set(by_edge.values()) == {"fp32", "int8"}
    assert all(codec == ("fp32" if before == after else "int8") for (before, after), codec in by_edge.items())


def coded(codec: Codec, around: Surroundings) -> Plan:
    """640,000 bytes cross from a to b; encoding takes 3.2 ms at the sender, which is half as fast, decoding 0.64."""
    profile = network(0.01, 0.01, leaving=640_000)
    own = CodecProfile(encode_s=2.5e-9, decode_s=1e-9, share=0.25)
    costs = Costs(replace(profile, codecs={**profile.codecs, codec: own}), around, codecs=[codec])
    return Planner(costs).of_cuts([1], [Seat(node="a", speed=0.5), Seat(node="b")])


def test_codecs_compute_beside_their_workers():
    around = replace(AROUND, cores=1)
    plan = coded("int4", around)
    # Both steps are 0.008 s and a classifier's 0.001.
    assert [piece.compute_s for piece in plan.pieces] == pytest.approx([0.018, 0.009])
    # To store the quarter that is left of 640,000 bytes takes 0.016 ms.
    by_node = seconds_by_node(plan.pieces, around, 1)
    totals = {node: sum(seconds) for node, seconds in by_node.items()}
    assert totals == pytest.approx({"a": 0.018 + 0.0032 + 0.000016, "b": 0.009 + 0.00064})
    assert (plan.pace_s, plan.slowest) == (pytest.approx(0.021216), "the cores of node a")
    assert coded("int4", AROUND).pace_s == pytest.approx(0.018)


def test_codecs_that_remember_compute_in_turn():
    plan = coded("diff4", AROUND)
    assert [piece.compute_s for piece in plan.pieces] == pytest.approx([0.018 + 0.0032, 0.009 + 0.00064])
    assert (plan.pace_s, plan.slowest) == (pytest.approx(0.0212), "worker 0, blocks 0 to 0")


def test_a_link_that_costs_more_than_a_worker_gains_is_left_out():
    profile = network(0.01, 0.01, leaving=40_000_000)
    plan = Planner(Costs(profile, AROUND, codecs=["fp32"])).best([Seat(node="a"), Seat(node="b")])
    assert plan.cuts == ()


def test_two_cores_are_no_four():
    around = Surroundings(cores=2, link_bytes_per_s=1e8, memcpy_bytes_per_s=1e10, call_s=0.003)
    planner = Planner(Costs(network(*[0.01] * 8), around, codecs=["fp32"]))
    plan = planner.best(seats(4))
    assert len(plan.pieces) == 2
    assert planner.by_count(seats(4))[4].slowest == "the cores of node here"


def test_cores_are_shared_out_evenly_whoever_takes_longest():
    # All three for 0.9 s, each on two thirds of a core, then two of them for 0.1 s, then the longest by itself.
    assert shared_s([0.6, 0.7, 1.0], 2) == pytest.approx(0.9 + 0.1 + 0.3)
    assert shared_s([0.6, 0.7, 1.0], 3) == pytest.approx(1.0)
    assert shared_s([1.0] * 3, 2) == pytest.approx(1.5)


def test_codecs_on_a_gpu_compute_on_what_its_stages_do():
    plan = coded("int4", replace(AROUND, threads=0))
    assert [piece.compute_s for piece in plan.pieces] == pytest.approx([0.018 + 0.0032, 0.009 + 0.00064])


def test_what_is_one_process_s_alone_is_not_called_a_lack_of_cores():
    around = replace(AROUND, threads=0, call_s=0.001)
    plan = Planner(Costs(network(*[1e-4] * 8), around, codecs=["fp32"])).of_cuts(range(1, 8), seats(8))
    assert (plan.pace_s, plan.slowest) == (pytest.approx(0.009), "the driver's calls")
    slow = CodecProfile(encode_s=1e-7, decode_s=1e-9, share=0.25)
    costs = Costs(replace(network(0.01, 0.01, leaving=640_000), codecs={"int4": slow}), AROUND, codecs=["int4"])
    plan = Planner(costs).of_cuts([1], seats(2))
    assert (plan.pace_s, plan.slowest) == (pytest.approx(0.064), "the codec into worker 1")


def test_what_ray_itself_computes_takes_cores():
    around = replace(AROUND, cores=2, ray_cores=0.1)
    plan = Planner(Costs(network(0.1, 0.1), around, codecs=["fp32"])).of_cuts([1], seats(2))
    # A tenth of 0.081 beside two that take as long: each lacks half of it.
    assert plan.pace_s == pytest.approx(0.081 * 1.05)


def test_threads_take_cores_and_a_gpu_takes_none():
    profile = network(0.1, 0.1)
    paces = {}
    for threads in (0, 1, 2):
        around = replace(AROUND, cores=1, threads=threads, call_s=0.001)
        paces[threads] = Planner(Costs(profile, around, codecs=["fp32"])).of_cuts([1], seats(2)).pace_s
    # A worker's step is 0.08 + 0.001 and its call 0.001; another three calls are the driver's.
    assert paces[0] == pytest.approx(0.082)
    assert paces[1] == pytest.approx(2 * 0.082 + 0.003)
    assert paces[2] == pytest.approx(2 * (2 * 0.081 + 0.001) + 0.003)


def test_several_data_workers_read_at_once():
    around = replace(AROUND, data_s=0.3)
    one = Planner(Costs(network(0.1, 0.1), around, codecs=["fp32"])).of_cuts([1], seats(2))
    three = Planner(Costs(network(0.1, 0.1), replace(around, data_workers=3), codecs=["fp32"])).of_cuts([1], seats(2))
    assert one.slowest == three.slowest == "reading the data"
    assert (one.pace_s, three.pace_s) == pytest.approx((0.3, 0.1))


def test_edges_between_the_same_nodes_share_their_link():
    profile = network(0.001, 0.001, 0.001, leaving=1_000_000)
    here, there = Seat(node="a"), Seat(node="b")
    costs = Costs(profile, AROUND, codecs=["fp32"])
    once = Planner(costs).of_cuts([1, 2], [here, there, there])
    # There and back: a link carries both ways at once.
    back = Planner(costs).of_cuts([1, 2], [here, there, here])
    twice = Planner(Costs(network(*[0.001] * 4, leaving=1_000_000), AROUND, codecs=["fp32"])).of_cuts(
        [1, 2, 3], [here, there, here, there]
    )
    assert once.pace_s == back.pace_s == pytest.approx(0.01)
    assert (twice.pace_s, twice.slowest) == (pytest.approx(0.02), "the link into workers 1 and 3")
    # Each edge would keep the other's pace without a codec, but both together do not.
    coded = Costs(network(*[0.001] * 4, leaving=1_000_000), AROUND, codecs=["fp32", "int8"])
    plan = Planner(coded).of_cuts([1, 2, 3], [here, there, here, there])
    assert [piece.codec for piece in plan.pieces] == ["fp32", "int8", "int8", "int8"]
    assert plan.pace_s < 0.01


def test_memory_makes_room_for_more_workers():
    planner = Planner(Costs(network(*[0.01] * 4), AROUND, codecs=["fp32"]))
    one = planner.best(seats(1)).pieces[0].memory_bytes
    small = planner.best(seats(4, memory_bytes=one * 0.9))
    assert len(small.pieces) > 1
    assert all(piece.memory_bytes <= one * 0.9 for piece in small.pieces)


def crossed_by(*names: Codec, share: float = 0.1) -> Profile:
    """Two blocks; 64 samples of 10,000 bytes cross, each kept in half as many."""
    profile = network(0.01, 0.01, leaving=640_000)
    codecs = {name: CodecProfile(encode_s=0.0, decode_s=0.0, share=share) for name in names}
    codecs |= {name: replace(codecs[name], kept_share=0.5) for name in names if name.startswith("diff")}
    return replace(profile, codecs={**profile.codecs, **codecs})


def taken(codec: Codec, around: Surroundings) -> list[float]:
    plan = Planner(Costs(crossed_by("diff4", "int4"), around, codecs=[codec])).of_cuts([1], seats(2))
    return [piece.memory_bytes for piece in plan.pieces]


def test_both_ends_of_an_edge_keep_its_samples():
    around = replace(AROUND, num_train=100, codec_cache_bytes=4e5)
    sender, receiver = taken("int4", around)
    # A receiver decodes differences one after the other, others ahead.
    assert taken("diff4", around) == [sender + 4e5, receiver + 4e5 - 3 * 640_000]
    assert taken("diff4", replace(around, num_train=50)) == [sender + 2.5e5, receiver + 2.5e5 - 3 * 640_000]


def test_a_snapshot_copies_what_is_kept():
    around = replace(AROUND, base_bytes=1e6, num_train=10_000, codec_cache_bytes=4e7)
    assert taken("diff4", around) == [1e6 + 8e7, 1e6 + 8e7]


def test_outputs_of_a_call_wait_for_each_other():
    sender, receiver = taken("int4", AROUND)
    more = replace(AROUND, per_call=3)
    assert taken("int4", more) == [sender + 2 * 640_000, receiver + 4 * 2 * 640_000]
    bounded = replace(more, call_bytes=1_000_000)
    assert taken("int4", bounded) == [sender + 360_000, receiver + 4 * 360_000]


def test_a_codec_that_the_sender_has_no_room_for_is_not_taken():
    around = replace(AROUND, num_train=1000, codec_cache_bytes=5e7, link_bytes_per_s=1e7)
    costs = Costs(crossed_by("diff4", "int4"), around, codecs=["diff4", "int4"])
    roomy = [Seat(node="a", memory_bytes=2e7), Seat(node="b", memory_bytes=2e7)]
    assert Planner(costs).by_count(roomy)[2].pieces[1].codec == "diff4"
    narrow = [Seat(node="a", memory_bytes=6e6), Seat(node="b", memory_bytes=2e7)]
    plan = Planner(costs).by_count(narrow)[2]
    assert plan.fits
    assert plan.pieces[1].codec == "int4"


def test_what_comes_from_another_node_past_the_store_is_in_the_workers_memory():
    def memory(nodes: str, past_store_bytes: float) -> list[float]:
        around = replace(AROUND, past_store_bytes=past_store_bytes)
        costs = Costs(network(0.01, 0.01), around, codecs=["fp32"])
        plan = costs.of_blocks([range(1), range(1, 2)], [Seat(node=node) for node in nodes])
        return [piece.memory_bytes for piece in plan.pieces]

    near = memory("aa", 1)
    assert memory("ab", math.inf) == near
    assert memory("ab", 1001) == near
    far = memory("ab", 1000)
    assert far[0] == near[0]
    # As many as may be on their way.
    assert far[1] - near[1] == pytest.approx(4 * 1000)
    # At every size, within a node and from the data, too.
    assert memory("aa", 0) == [each + 4 * 1000 for each in near]


def test_what_does_not_fit_is_refused_with_numbers():
    around = Surroundings(cores=64, link_bytes_per_s=1e8, memcpy_bytes_per_s=1e10, base_bytes=5e8)
    with pytest.raises(InputError, match=r"at most 2 workers of 100 MB.*a block alone takes 500 to 500 MB, 500 MB"):
        Planner(Costs(network(0.01, 0.01), around, codecs=["fp32"])).best(seats(2, memory_bytes=1e8))


def test_replicas_take_their_shares():
    alone = Planner(Costs(network(0.01, 0.01), AROUND, codecs=["fp32"])).best(seats(2))
    shared = Planner(Costs(network(0.01, 0.01), AROUND, codecs=["fp32"], replicas=2)).best(seats(2))
    assert shared.samples_per_s == pytest.approx(2 * alone.samples_per_s)


def test_fifty_blocks_over_eight_workers():
    draw = random.Random(0)
    planner = Planner(Costs(network(*(draw.uniform(0.001, 0.02) for _ in range(54))), AROUND, codecs=["fp32"]))
    plan = planner.best(seats(8))
    assert len(plan.pieces) == 8
    whole_s = sum(block.inner_s for block in planner.costs._profile.blocks)
    assert whole_s / 8 <= plan.pace_s < whole_s / 8 * 1.2
    assert not math.isinf(plan.pace_s)


def test_what_a_trial_took_counts_instead_of_sums():
    around = replace(AROUND, call_s=0.002, base_bytes=1e6)
    planner = Planner(Costs(network(0.01, 0.01), around, codecs=["fp32", "int8"], replicas=2))
    plan = planner.of_cuts((1,), [Seat(), Seat(speed=0.5)])
    tried = planner.costs.as_rehearsed(
        plan,
        [
            Rehearsed(step_s=0.02, undisturbed_s=0.01, memory_bytes=5e6),
            Rehearsed(step_s=0.03, undisturbed_s=0.03, memory_bytes=7e6),
        ],
    )
    assert [piece.compute_s for piece in tried.pieces] == pytest.approx([0.022, 0.062])
    # What the first one sends waits beside what it makes: half of 1000 bytes.
    assert [piece.memory_bytes for piece in tried.pieces] == [6e6 + 500, 8e6]
    assert tried.pace_s == pytest.approx(0.062)
    assert (tried.cuts, [piece.codec for piece in tried.pieces]) == ((1,), ["fp32", "fp32"])


def test_codecs_follow_what_a_trial_took():
    profile = network(0.01, 0.01)
    around = replace(AROUND, link_bytes_per_s=profile.blocks[0].leaving_bytes / 0.02)
    costs = Costs(profile, around, codecs=["fp32", "int8"])
    plan = Planner(costs).of_cuts((1,), [Seat(node="a"), Seat(node="b")])
    # The link would take 20 ms, the computing 10.
    assert plan.pieces[1].codec == "int8"
    slow = [Rehearsed(step_s=0.03, undisturbed_s=0.01, memory_bytes=1.0)] * 2
    assert costs.as_rehearsed(plan, slow).pieces[1].codec == "fp32"
    assert costs.as_rehearsed(plan, slow, undisturbed=True).pieces[1].codec == "int8"
