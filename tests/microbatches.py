"""Made-up microbatches of one sample, for tests of the schedule."""

from __future__ import annotations

from distblock.messages import Item, Purpose


def microbatches(count: int, *, purpose: Purpose = "train", pass_length: int = 1000) -> list[Item]:
    """Numbered from 0; each is a batch, and each ``pass_length``-th closes its pass."""
    return [
        Item(
            number=number,
            purpose=purpose,
            part="train" if purpose == "train" else "validation",
            epoch=number // pass_length,
            index=number % pass_length,
            first_sample=number % pass_length,
            num_samples=1,
            batch_samples=1,
            closes_batch=True,
            closes_pass=(number + 1) % pass_length == 0,
        )
        for number in range(count)
    ]
