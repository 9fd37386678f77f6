"""The user's own functions, by import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from distblock.errors import InputError


def import_callable(path: str, *, key: str) -> Callable[..., Any]:
    """Import ``package.module:function``; the current directory is searched too.

    Args:
        path: the import path.
        key: the setting it came from, for messages.

    Raises:
        InputError: there is no such module or function, or the module fails on import.
    """
    module_name, _, name = path.partition(":")
    # An installed script's path begins with the script's folder; a user's function lies where they are.
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{key}: cannot import {module_name}: {type(error).__name__}: {' '.join(str(error).split())}; run from the"
            " folder that holds it, or install it"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{key}: module {module_name} has no function {name!r}; {_offer(module, name)}")
    return function


def _offer(module: ModuleType, wanted: str) -> str:
    functions = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    near = difflib.get_close_matches(wanted, functions, n=1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(functions) or 'no functions'}"
