"""Typed flags over a YAML file: ``--data.name cifar10`` is the key ``data.name``.

A command-line library checks the flags by themselves, and the file by itself; but a file may leave out what a flag
gives, and an error should read alike wherever a value came from. So flags become a nested dictionary here, are laid
over the file's, and `distblock.config.make_config` checks the whole, once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distblock.config import Config, read_values
from distblock.errors import InputError


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Flags as a nested dictionary of texts; values are checked later.

    A flag's words may be joined by ``-`` or ``_``; ``--key=value`` works too; a switch needs no value and
    has a ``no-`` form; ``none`` stands for no value.

    Raises:
        InputError: an unknown flag, a word that belongs to none, or a flag without its value.
    """
    values: dict[str, Any] = {}
    for flag, words in _split(arguments):
        key, field, negated = _find(flag)
        _put(values, key, _value(flag, field, words, negated))
    return values


def as_flags(config: Config) -> list[str]:
    """What was given of a configuration, as flags: `parse_flags` and `make_config` make the same of them."""
    words: list[str] = []
    for key, value in leaves(config.model_dump(mode="json", exclude_unset=True)):
        flag = f"--{key.replace('_', '-')}"
        texts = _texts(value)
        # A value that looks like a flag would be taken for one.
        is_joined = len(texts) == 1 and texts[0].startswith("--")
        words += [f"{flag}={texts[0]}"] if is_joined else [flag, *texts]
    return words


def take_options(arguments: Sequence[str], names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """A command's own options, ``--name value`` or ``--name=value``, and all other arguments.

    Returns:
        The values of each name in order, empty for one without a value and no list for one that is not there; the rest.
    """
    options: dict[str, list[str]] = {}
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        name, is_joined, value = word.partition("=")
        if name in names:
            options.setdefault(name, []).append(value if is_joined else next(words, ""))
        else:
            others.append(word)
    return options, others


def take_several(arguments: Sequence[str], names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """A command's own options with all words up to the next option, and all other arguments."""
    options: dict[str, list[str]] = {}
    others: list[str] = []
    into = others
    for word in arguments:
        name, is_joined, value = word.partition("=")
        if word.startswith("--"):
            into = options.setdefault(name, []) if name in names else others
            if name in names:
                into += [value] if is_joined else []
                continue
        into.append(word)
    return options, others


def take_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of ``--config``, and all other arguments.

    Raises:
        InputError: ``--config`` without a file.
    """
    options, others = take_options(arguments, ["--config"])
    files = options.get("--config", [])
    if "" in files:
        raise InputError("--config: expected a YAML file, got nothing")
    return files, others


def check_folder(path: str | Path, *, where: str) -> None:
    """Whether a file can be written there, before an hour is spent.

    Raises:
        InputError: its folder is not there, or it is one; ``where`` names the option.
    """
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"{where}: expected a file in a folder that is there, got {path}; make the folder first")
    if Path(path).is_dir():
        raise InputError(f"{where}: expected a file to write, got the folder {path}; name a file in it")


def whole_number(text: str, *, where: str) -> int:
    """An option's value of 1 or more.

    Raises:
        InputError: it is none; ``where`` names the option.
    """
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{where}: expected a number of 1 or more, got {text!r}")
    return int(text)


def quantity(text: str, where: str, units: Mapping[str, float]) -> float:
    """A number with its unit.

    Raises:
        InputError: it is none; ``where`` names the option.
    """
    lower = text.lower()
    for unit, factor in units.items():
        number = lower.removesuffix(unit)
        if lower.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return float(number) * factor
    raise InputError(f"{where}: expected a number with one of {', '.join(units)} behind it, got {text or 'nothing'}")


def read_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """``--config`` files in order, each laid over the one before, and the flags over all; not yet checked.

    Raises:
        InputError: a file cannot be read, an unknown flag, or ``--config`` without a file.
    """
    files, flags = take_files(arguments)
    values: dict[str, Any] = {}
    for file in files:
        values = merge(values, read_values(file))
    return merge(values, parse_flags(flags))


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other."""
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = merge(lower, value) if isinstance(lower, dict) and isinstance(value, dict) else value
    return merged


def known_flags() -> dict[str, FieldInfo]:
    """Every dotted key with its field."""
    return dict(_walk(Config, ""))


def _walk(section: type[BaseModel], prefix: str) -> list[tuple[str, FieldInfo]]:
    found = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _walk(field.annotation, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field))
    return found


def _texts(value: Any) -> list[str]:
    """The words of a flag."""
    if value is None:
        return ["none"]
    if isinstance(value, dict):
        return [f"{key}={each}" for key, each in value.items()]
    return [str(part) for part in (value if isinstance(value, list) else [value])]


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted keys, each as one value."""
    known = known_flags()
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in known:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    flags: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            flags.append((name, [value] if equals else []))
        elif flags:
            flags[-1][1].append(argument)
        else:
            raise InputError(f"{argument}: expected a flag such as --data.name, got a word that belongs to none")
    return flags


def _find(flag: str) -> tuple[str, FieldInfo, bool]:
    known = known_flags()
    key = flag.removeprefix("--").replace("-", "_")
    if key in known:
        return key, known[key], False
    section, _, last = key.rpartition(".")
    positive = f"{section}.{last.removeprefix('no_')}".lstrip(".")
    if last.startswith("no_") and positive in known and known[positive].annotation is bool:
        return positive, known[positive], True
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean --{near[0].replace('_', '-')}?" if near else "; see distblock train --help"
    raise InputError(f"{flag}: unknown flag{hint}")


def _value(flag: str, field: FieldInfo, words: list[str], negated: bool) -> Any:
    if field.annotation is bool and not words:
        return not negated
    if _takes(field, dict):
        return dict(_pair(flag, part) for word in words for part in word.split(",") if part)
    if _takes(field, tuple) and words not in (["none"], ["None"]):
        return [part for word in words for part in word.split(",") if part]
    if negated or len(words) != 1:
        raise InputError(f"{flag}: expected one value, got {' '.join(words) or 'none'}")
    return None if words[0] in ("none", "None") else words[0]


def _takes(field: FieldInfo, container: type) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(get_origin(kind) is container for kind in kinds)


def _pair(flag: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise InputError(f"{flag}: expected KEY=VALUE, such as 1=int8, got {word}")
    return key, value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value
