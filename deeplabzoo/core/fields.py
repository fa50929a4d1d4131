"""Checks of the fields of a spec, and the way of its sections to and from plain data."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from deeplabzoo.errors import SpecError, near_match, unknown

MOST = 2**20
"""Largest whole number in a spec; beyond it a slip of the keyboard is likelier than a network."""


_MOST_SHOWN = 24
_MOST_BRANCHES = 16


def check_choice(field: str, value: object, legal: Iterable[object]) -> None:
    """`value` must be one of `legal`."""
    options = list(legal)
    # The type counts too: 16.0 equals 16 and True equals 1, but neither may stand for the other in a spec.
    if not any(type(value) is type(option) and value == option for option in options):
        names = [option for option in options if isinstance(option, str)]
        if len(options) > _MOST_SHOWN:
            raise SpecError(unknown(field, shown(value).strip("'"), names))
        raise SpecError(
            f"{field} = {shown(value)}: expected one of {', '.join(map(str, options))}{near_match(value if isinstance(value, str) else shown(value), names)}"
        )


def check_int(field: str, value: object, least: int = 1) -> None:
    """`value` must be a whole number of at least `least` and at most `MOST`."""
    if type(value) is not int or not least <= value <= MOST:
        raise SpecError(f"{field} = {shown(value)}: expected a whole number of at least {least} and at most {MOST}")


def check_ints(field: str, value: object, *, length: int | None = None) -> None:
    """`value` must be a tuple of positive whole numbers, of `length` where one is given, else of at most 16."""
    if isinstance(value, tuple) and len(value) > _MOST_BRANCHES:
        raise SpecError(f"{field} holds {len(value)} numbers: expected at most {_MOST_BRANCHES}")
    legal = isinstance(value, tuple) and all(type(v) is int and 0 < v <= MOST for v in value)
    if not legal or (length is not None and len(typing.cast("tuple[int, ...]", value)) != length):
        wanted = "positive whole numbers" if length is None else f"{length} positive whole numbers"
        raise SpecError(f"{field} = {shown(value)}: expected {wanted} of at most {MOST}")


def check_number(field: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """`value` must be a finite number in [low, high), or (low, high) with `open_low`."""
    legal = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not legal or not (low < value if open_low else low <= value) or value >= high:  # type: ignore[operator]
        bounds = f"{'>' if open_low else '>='} {low:g} and < {high:g}"
        raise SpecError(f"{field} = {shown(value)}: expected a number {bounds}")


def check_bool(field: str, value: object) -> None:
    """`value` must be true or false."""
    if not isinstance(value, bool):
        raise SpecError(f"{field} = {value!r}: expected true or false")


def check_norm(section: str, epsilon: object, momentum: object) -> None:
    """Epsilon above 0 and below 1, momentum (share of the old statistic) at least 0 and below 1."""
    check_number(f"{section}.epsilon", epsilon, 0, 1, open_low=True)
    check_number(f"{section}.momentum", momentum, 0, 1)
    # Frameworks compute with float32's neighbours of these, which must be legal as well.
    if np.float32(epsilon) == 0:  # type: ignore[arg-type]
        raise SpecError(f"{section}.epsilon = {epsilon!r}: expected a number that float32 can tell from 0")
    if np.float32(momentum) == 1:  # type: ignore[arg-type]
        raise SpecError(f"{section}.momentum = {momentum!r}: expected a number that float32 can tell from 1")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A frozen group of fields that reads and writes itself as plain data (TOML and JSON types)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # TOML and JSON know no tuples
                object.__setattr__(self, field.name, tuple(value))
            elif type(value) is int and field.type in ("float", float) and abs(value) <= MOST:
                object.__setattr__(self, field.name, float(value))
        self.validate()

    def validate(self) -> None:
        """Raise `SpecError` for a field that is wrong."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; sections that are absent (None) are left out."""
        data: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Section):
                data[field.name] = value.to_dict()
            elif isinstance(value, tuple):
                data[field.name] = list(value)
            elif value is not None:
                data[field.name] = value
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "") -> Self:
        """Read plain data; unknown and missing fields are errors that name the legal ones.

        Raises:
            SpecError: an unknown, missing or wrong field.
        """
        check_table(where or "the spec", data)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                raise SpecError(
                    f"unknown field {where}{key!s}: expected one of {', '.join(fields)}{near_match(key, fields)}"
                )
        required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in data]:
            raise SpecError(f"field {where}{missing[0]} is missing: give it a value")
        hints = typing.get_type_hints(cls)
        # JSON writers say null for a section that is absent.
        given = {key: value for key, value in data.items() if value is not None or fields[key].default is not None}
        return cls(**{key: _read(hints[key], value, f"{where}{key}") for key, value in given.items()})

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked again; `TypeError`-free: unknown names are `SpecError`s."""
        legal = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in legal:
                raise SpecError(f"unknown field {name}: expected one of {', '.join(legal)}{near_match(name, legal)}")
        return dataclasses.replace(self, **changes)


def shown(value: object) -> str:
    """A value for an error line: its repr, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_table(where: str, data: object) -> None:
    """`data` must be a table of fields."""
    if not isinstance(data, Mapping):
        raise SpecError(f"{where.rstrip('.')} = {data!r}: expected a table of fields")


def _read(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Section) and not isinstance(value, Section):
            return option.from_dict(value, where=f"{where}.")
    return value
