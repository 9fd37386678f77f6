"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _class_name(name: object) -> object:
    if isinstance(name, bool):
        # pydantic takes no other error for one of the user's.
        raise ValueError(f"data: expected names of classes, got {name}; put quotes around a name such as 'no'")  # noqa: TRY004
    return str(name) if isinstance(name, int) else name


ClassName = Annotated[str, BeforeValidator(_class_name)]
"""YAML reads the name of a digit as a number."""


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
