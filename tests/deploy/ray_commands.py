"""Does Ray itself take a ``ray start`` that stands in a file?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from ray.scripts.scripts import start


def parsed_start(words: Sequence[str]) -> dict[str, Any]:
    """What the options of ``ray start ...`` come to, by Ray's own parser; nothing is started.

    Raises:
        click.ClickException: an unknown option, or a value of the wrong type.
    """
    assert list(words[:2]) == ["ray", "start"], words
    return start.make_context("start", list(words[2:])).params


def words_of(line: str) -> list[str]:
    """A shell line, without the variables set before its command."""
    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    return words
