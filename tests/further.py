"""Cases that take minutes and differ from a quick one in regime, size or kind of failure alone.

``make test-all`` runs them, too.
"""

from __future__ import annotations

from typing import Any

import pytest


def further(*values: Any) -> Any:
    """A parameter of such a case."""
    return pytest.param(*values, marks=pytest.mark.further)
