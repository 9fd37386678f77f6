"""Settings from dictionaries and YAML files, and back; what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distblock.config.whole import Config
from distblock.errors import InputError

FORMAT_VERSION = 1
"""Version of the files of a run directory."""


def make_config(values: dict[str, Any]) -> Config:
    """Check a nested dictionary.

    Raises:
        InputError: unknown keys or values out of range; one line names them all.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def read_values(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, not yet checked.

    Raises:
        InputError: the file cannot be read, or is no YAML mapping.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path}: {error}") from None
    return parse_values(text, origin=str(path))


def parse_values(text: str, *, origin: str) -> dict[str, Any]:
    """The keys and values of YAML text, not yet checked; ``origin`` names it in errors."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"config file {origin}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"config file {origin}: expected keys and values, got {type(values).__name__}")
    version = values.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise InputError(f"config file {origin}: expected format_version {FORMAT_VERSION}, got {version}")
    return values


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, with the version of the format."""
    values = {"format_version": FORMAT_VERSION, **config.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False)


def explain(error: ValidationError) -> str:
    """One line for all that a validation found: key, expectation, what came."""
    return "; ".join(_explain_one(detail) for detail in error.errors())


def _explain_one(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"] if not str(part).startswith(("constrained-", "literal[")))
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(detail['loc'])}"
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    return f"{key}: {detail['msg'].lower().replace('input should', 'should')}, got {detail['input']!r}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """The known keys beside an unknown one, the nearest first where one is near."""
    import difflib

    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; expected one of {', '.join(section.model_fields)}"
