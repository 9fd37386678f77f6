"""The user's own functions, by import path."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from distblock.errors import InputError


def import_callable(path: str, *, key: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Args:
        path: the import path.
        key: the setting it came from, for messages.

    Raises:
        InputError: there is no such module or function, or the module fails on import.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{key}: cannot import {module_name}: {type(error).__name__}: {' '.join(str(error).split())}; run from the"
            " folder that holds it, or install it"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{key}: module {module_name} has no function {name!r}{hint}")
    return function
