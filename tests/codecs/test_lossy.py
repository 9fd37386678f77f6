"""Codecs that lose something: how much, that chance is fair and repeatable, and that both ends agree."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from distblock.codecs.cast import Features, named_tensors
from distblock.codecs.edge import EdgeCodec, Microbatch
from distblock.codecs.lossy import Occasion
from distblock.codecs.payload import check_payload
from distblock.codecs.quantized import Float8, Quantized
from distblock.codecs.sparse import TopK
from distblock.codecs.staging import Staging
from distblock.config import ChannelConfig, Codec
from distblock.messages import Item

CPU = Staging(torch.device("cpu"))
OCCASION = Occasion(seed=1)
ITEM = Item.of_batch(7, 4)
LOSSY = [codec for codec in get_args(Codec) if codec not in ChannelConfig.CASTS]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensor(features: Features) -> Tensor:
    assert isinstance(features, Tensor)
    return features


def edge_codec(name: str, **channel: object) -> EdgeCodec:
    settings = ChannelConfig.model_validate({"codec": name, **channel})
    return EdgeCodec(settings, run="r", edge=2, seed=0, staging=CPU)


def microbatch(epoch: int = 0, samples: tuple[int, ...] = (0, 1, 2, 3)) -> Microbatch:
    item = replace(ITEM, epoch=epoch, number=7 + 100 * epoch, num_samples=len(samples))
    return Microbatch(item=item, samples=np.array(samples, dtype=np.int32))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 7), (3, 5, 3), (2, 1, 1, 1), (1, 2, 3)])
def test_a_quantized_value_is_within_a_step_of_its_channels_range(bits: int, shape: tuple[int, ...]):
    values = randn(*shape) + 3
    back = Quantized(bits).round_trip(values, OCCASION)
    grouped = values.flatten(1).unsqueeze(1) if len(shape) == 2 else values.flatten(2)
    step = (grouped.amax(2) - grouped.amin(2)) / (2**bits - 1)
    # float16 keeps the beginning and the step of a range to 2**-11.
    slack = grouped.abs().amax(2) * 2**-10
    error = (back - values).abs().reshape(grouped.shape).amax(2)
    assert torch.all(error <= step * 1.001 + slack)


def test_rounding_by_chance_is_right_on_average_and_nearest_rounding_would_not_be():
    values = torch.tensor([0.0, 0.3, 1.0]).repeat(1, 1, 1)
    means = torch.stack([Quantized(2).round_trip(values * 3, Occasion(seed=seed)) for seed in range(3000)]).mean(0)
    assert means[0, 0, 1].item() == pytest.approx(0.9, abs=0.03)
    assert torch.round(values * 3)[0, 0, 1] == 1.0


@pytest.mark.parametrize("codec", [Quantized(8), Quantized(2), Float8()])
@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_constant_channels_stay(codec: Quantized | Float8, value: float):
    values = torch.full((2, 3, 4, 4), value)
    assert torch.equal(codec.round_trip(values, OCCASION), values)


def test_zeros_of_a_rectified_channel_stay_zero():
    values = randn(8, 4, 6, 6).relu()
    for bits in (2, 4, 8):
        assert torch.all(Quantized(bits).round_trip(values, OCCASION)[values == 0] == 0)


@pytest.mark.parametrize("codec", [Quantized(8), Float8()])
def test_values_beyond_float16_saturate_and_stay_finite(codec: Quantized | Float8):
    values = torch.tensor([[[-1e30, 0.0, 1e30]]])
    assert torch.isfinite(codec.round_trip(values, OCCASION)).all()


def test_float8_rounds_as_torch_does():
    values = randn(2, 3, 4)
    scale = values.abs().amax(2, keepdim=True) / 448
    wanted = (values / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(Float8().round_trip(values, OCCASION), wanted, rtol=1e-6, atol=0)


def test_top_k_keeps_the_largest_and_their_places():
    values = randn(3, 2, 5, 5)
    back = TopK(0.1).round_trip(values, OCCASION).flatten(1)
    for row, given in zip(back, values.flatten(1), strict=True):
        places = given.abs().argsort(descending=True)[:5]
        wanted = torch.zeros(50)
        wanted[places] = given[places].half().float()
        assert torch.equal(row, wanted)


FEATURES: dict[str, Features] = {
    "tensor": randn(4, 16, 6, 6),
    "channels last": randn(4, 16, 6, 6).contiguous(memory_format=torch.channels_last),
    "bf16": randn(4, 16, 6, 6).bfloat16(),
    "flat": randn(4, 40),
    "tuple": (randn(4, 16, 3, 3), torch.arange(8).reshape(4, 2)),
    "dict": {"features": randn(4, 8, 2, 2), "mask": torch.ones(4, 5, dtype=torch.bool)},
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("name", LOSSY)
def test_what_arrives_is_what_stays_in_one_process_bit_by_bit(name: str, features: Features):
    sender, receiver, both = (edge_codec(name, codec_cache_bytes=3000) for _ in range(3))
    shapes = tuple(tuple(tensor.shape[1:]) for _, tensor in named_tensors(features))
    for epoch in range(3):
        mine = microbatch(epoch)
        payload = pickle.loads(pickle.dumps(sender.encode(features, torch.arange(4), mine)))
        check_payload(payload, run="r", edge=2, item=mine.item, sample_shapes=shapes)
        arrived, labels = receiver.decode(payload, replace(mine, samples=payload.samples))
        stayed = both.round_trip(features, mine)
        assert labels.tolist() == [0, 1, 2, 3]
        assert type(arrived) is type(features)
        triples = zip(named_tensors(arrived), named_tensors(stayed), named_tensors(features), strict=True)
        for (key, out), (_, kept), (wanted_key, given) in triples:
            assert key == wanted_key
            assert out.dtype == kept.dtype == given.dtype
            assert out.stride() == kept.stride() == given.stride()
            assert torch.equal(out, kept)
            if not given.is_floating_point():
                assert torch.equal(out, given)


@pytest.mark.parametrize("name", LOSSY)
def test_an_end_that_is_replaced_goes_on_from_its_state(name: str):
    sender, receiver = edge_codec(name), edge_codec(name)
    for epoch in range(4):
        if epoch == 2:
            before = sender.state(), receiver.state()
            again = [edge_codec(name), edge_codec(name)]
            for other, state in zip(again, before, strict=True):
                other.load(pickle.loads(pickle.dumps(state)))
                assert {key: array.tobytes() for key, array in other.state().items()} == {
                    key: array.tobytes() for key, array in state.items()
                }
            twin, receiver = again[0], again[1]
            features = randn(4, 8, 4, 4, seed=epoch)
            pair = [each.encode(features, torch.arange(4), microbatch(epoch)) for each in (sender, twin)]
            assert pickle.dumps(pair[0].arrays) == pickle.dumps(pair[1].arrays)
            receiver.decode(pair[1], microbatch(epoch))
        else:
            payload = sender.encode(randn(4, 8, 4, 4, seed=epoch), torch.arange(4), microbatch(epoch))
            receiver.decode(payload, microbatch(epoch))
    if name != "vq":  # whose receiver remembers nothing
        kept = [{key: array.tobytes() for key, array in end.state().items()} for end in (sender, receiver)]
        assert kept[0] == kept[1]


@pytest.mark.parametrize(("name", "at_least"), [("diff8", 30.0), ("diff4", 10.0), ("diff2", 1.5)])
def test_differences_of_what_changes_slowly_lose_far_less_than_the_same_bits_of_all_of_it(name: str, at_least: float):
    codec = edge_codec(name)
    bits = int(name.removeprefix("diff"))
    features = randn(4, 8, 8, 8)
    errors = []
    for epoch in range(6):
        features = features + 0.01 * randn(4, 8, 8, 8, seed=epoch + 1)
        errors.append(float((tensor(codec.round_trip(features, microbatch(epoch))) - features).norm()))
    plain = float((Quantized(bits).round_trip(features, OCCASION) - features).norm())
    assert errors[-1] * at_least < plain


def test_error_feedback_finds_all_of_a_sample_that_stays_the_same():
    features = randn(4, 8, 4, 4)
    codec = edge_codec("topk", topk_share=0.1)
    errors = [float((tensor(codec.round_trip(features, microbatch(epoch))) - features).norm()) for epoch in range(12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


def test_no_more_samples_are_kept_than_the_budget_holds_and_the_others_come_whole():
    per_sample = 8 * 4 * 4 * 2
    codec = edge_codec("diff2", codec_cache_bytes=2 * per_sample)
    features = randn(4, 8, 4, 4)
    for epoch in range(4):
        codec.round_trip(features, microbatch(epoch))
    state = codec.state()
    assert state["None.samples"].tolist() == [0, 1]
    assert state["None.values"].nbytes == 2 * per_sample
    first = codec.encode(features, torch.arange(4), microbatch(4))
    codes = [array for array in first.arrays if array.dtype == np.uint8]
    # Two samples at two bits a value, two at eight.
    assert [array.nbytes for array in codes] == [2 * 128 // 4, 2 * 128]


def test_what_is_not_trained_on_is_not_remembered():
    codec = edge_codec("diff4")
    item = replace(ITEM, purpose="validation", part="validation")
    codec.round_trip(randn(4, 8, 4, 4), Microbatch(item=item, samples=np.arange(4, dtype=np.int32)))
    assert codec.state() == {}


def test_vectors_are_learned():
    codec = edge_codec("vq")
    centres = randn(16, 8, seed=3) * 4
    errors = []
    for epoch in range(80):
        which = torch.randint(16, (4, 9), generator=torch.Generator().manual_seed(epoch))
        features = centres[which].movedim(2, 1).reshape(4, 8, 3, 3) + 0.01 * randn(4, 8, 3, 3, seed=epoch)
        back = tensor(codec.round_trip(features, microbatch(epoch)))
        errors.append(float((back - features).norm() / features.norm()))
    assert np.mean(errors[-10:]) < 0.05


@pytest.mark.parametrize(
    ("name", "share"),
    [("fp8", 0.27), ("int8", 0.27), ("int4", 0.15), ("diff4", 0.15), ("diff2", 0.09), ("topk", 0.11), ("vq", 0.08)],
)
def test_bytes_on_the_wire(name: str, share: float):
    codec = edge_codec(name)
    features = randn(32, 16, 16, 16)
    labels = torch.arange(32)
    first, second = (
        Microbatch(item=replace(ITEM, epoch=epoch, num_samples=32), samples=np.arange(32, dtype=np.int32))
        for epoch in range(2)
    )
    codec.encode(features, labels, first)
    payload = codec.encode(features, labels, second)
    assert payload.payload_bytes == features.numel() * 4
    assert payload.wire_bytes < share * payload.payload_bytes
