"""Profiles of made-up networks, for tests of planners."""

from __future__ import annotations

from distblock.planning.profile import BlockProfile, CodecProfile, Profile

CODECS = {
    "fp32": CodecProfile(encode_s=0.0, decode_s=0.0, share=1.0),
    "int8": CodecProfile(encode_s=2e-9, decode_s=1e-9, share=0.25),
}


def block(seconds: float, *, leaving: int = 1000, state: int = 1000, kept: int = 1000) -> BlockProfile:
    return BlockProfile(
        name="b",
        first_s=seconds * 0.8,
        inner_s=seconds,
        classifier_s=0.001,
        leaving_bytes=leaving,
        state_bytes=state,
        classifier_state_bytes=10,
        saved_bytes=kept,
        classifier_saved_bytes=10,
    )


def network(*seconds: float, leaving: int = 1000) -> Profile:
    blocks = tuple(block(each, leaving=leaving) for each in seconds)
    return Profile(blocks=blocks, codecs=CODECS, num_samples=64, entering_bytes=1000)
