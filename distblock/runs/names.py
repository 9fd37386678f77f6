"""What runs are called: a name is one folder's, and cannot lead out of the folder of runs."""

from __future__ import annotations

import re
from datetime import datetime

from distblock.config import Config
from distblock.errors import InputError

LONGEST_NAME = 100

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def default_name(config: Config) -> str:
    """What a run is called that nobody named: when it began, its data and its network."""
    return _NOT_IN_NAMES.sub("-", f"{datetime.now():%Y%m%d-%H%M%S}-{config.data.name}-{config.model.name}")


def check_name(name: str, *, where: str) -> str:
    """See that a name can be a run's.

    Raises:
        InputError: it is empty, too long, hidden, or has other characters; ``where`` says who gave it.
    """
    if not name or len(name) > LONGEST_NAME or name.startswith((".", "-")) or _NOT_IN_NAMES.search(name):
        raise InputError(
            f"{where}: expected a name of up to {LONGEST_NAME} letters, digits, dots, hyphens and underscores,"
            f" a letter, a digit or an underscore first, got {name!r}"
        )
    return name
