"""Encoding for a hop, against the tensors that went in."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from distblock.codecs.cast import Features, decode, encode, named_tensors, round_trip
from distblock.codecs.payload import Payload, check_payload
from distblock.codecs.staging import Staging
from distblock.messages import Item

CPU = Staging(torch.device("cpu"))
ITEM = Item.of_batch(7, 4)


def hop(features: Features, codec: str) -> Payload:
    labels = torch.arange(4)
    return encode(features, labels, codec=codec, run="r", edge=2, number=7, staging=CPU)


def images() -> Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


FEATURES: dict[str, Features] = {
    "tensor": images(),
    "channels last": images().contiguous(memory_format=torch.channels_last),
    "bf16": images().bfloat16(),
    "tuple": (images(), torch.arange(8).reshape(4, 2)),
    "dict": {"features": images(), "mask": torch.ones(4, 5, dtype=torch.bool)},
    "strided": images()[:, :, ::2],
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16"])
def test_decode_gives_the_cast_and_nothing_else(features: Features, codec: str):
    decoded, labels = decode(pickle.loads(pickle.dumps(hop(features, codec))), staging=CPU)
    narrow = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[codec]
    assert type(decoded) is type(features)
    for (key, out), (wanted_key, given) in zip(named_tensors(decoded), named_tensors(features), strict=True):
        # Oracle: torch's own cast there and back, for what is wider than the codec; everything else bit by bit.
        wanted = given.to(narrow).to(given.dtype) if given.dtype == torch.float32 else given
        assert key == wanted_key
        assert out.dtype == given.dtype
        assert torch.equal(out, wanted)
    assert torch.equal(labels, torch.arange(4))


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16"])
def test_the_hop_inside_a_process_gives_the_same_bits_and_the_same_strides(features: Features, codec: str):
    # Kernels may add in another order for other strides: both ways must agree in them, too.
    decoded, _ = decode(hop(features, codec), staging=CPU)
    passed = round_trip(features, codec=codec)
    for (_, one), (_, other) in zip(named_tensors(decoded), named_tensors(passed), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_bytes_before_and_after_the_codec():
    payload = hop(images(), "bf16")
    assert payload.payload_bytes == 4 * 3 * 5 * 5 * 4
    assert payload.wire_bytes == 4 * 3 * 5 * 5 * 2 + 4 * 8


def test_nothing_is_copied_on_a_cpu():
    features = images()
    payload = hop(features, "fp32")
    assert payload.arrays[0].__array_interface__["data"][0] == features.data_ptr()
    decoded, _ = decode(payload, staging=CPU)
    assert isinstance(decoded, Tensor)
    assert decoded.data_ptr() == features.data_ptr()


def test_the_receiver_refuses_what_it_did_not_expect():
    payload = hop(images(), "fp32")
    expected = {"run": "r", "edge": 2, "item": ITEM, "sample_shapes": ((3, 5, 5),)}
    check_payload(payload, **expected)
    with pytest.raises(ValueError, match=r"expected the activation of run other, edge 2.* got that of run r"):
        check_payload(payload, **{**expected, "run": "other"})
    with pytest.raises(ValueError, match="microbatch 7, got that of run r, edge 2, microbatch 8"):
        check_payload(
            encode(images(), torch.arange(4), codec="fp32", run="r", edge=2, number=8, staging=CPU), **expected
        )
    with pytest.raises(ValueError, match=r"shape \(4, 3, 6, 6\), got \(4, 3, 5, 5\)"):
        check_payload(payload, **{**expected, "sample_shapes": ((3, 6, 6),)})
    with pytest.raises(ValueError, match="expected 4 labels"):
        check_payload(
            encode(images(), torch.arange(3), codec="fp32", run="r", edge=2, number=7, staging=CPU), **expected
        )
