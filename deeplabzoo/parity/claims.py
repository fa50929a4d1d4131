"""Plain data that a stranger wrote, believed only after a look; what is wrong is a `Flaw` of one line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from deeplabzoo.weights_converter.formats import Flaw, shown

_MOST_ENTRIES, _MOST_TEXT = 32, 500


def table(value: object, what: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise Flaw(f"{what} is a {type(value).__name__}: expected a table")
    return value


def items(value: object, what: str, most: int) -> list[Any]:
    """A list of at most `most`."""
    if not isinstance(value, list) or len(value) > most:
        raise Flaw(f"{what}: expected a list of at most {most}")
    return value


def whole(value: object, what: str, least: int) -> int:
    """A whole number of at least `least` that fits 64 bits."""
    if type(value) is not int or not least <= value < 2**63:
        raise Flaw(f"{what} = {shown(value)}: expected a whole number of at least {least}")
    return value


def number(value: object, what: str) -> float:
    """A finite float."""
    if type(value) is not float or not math.isfinite(value):
        raise Flaw(f"{what} = {shown(value)}: expected a finite number")
    return value


def words(value: object, what: str) -> str:
    """Text that is not long, on one line: other characters could move a terminal's cursor or forge a line."""
    if not isinstance(value, str) or len(value) > _MOST_TEXT or not value.isprintable():
        raise Flaw(f"{what} = {shown(value)}: expected printable text of at most {_MOST_TEXT} characters on one line")
    return value


def digest(value: object, what: str) -> str:
    """A SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise Flaw(f"{what} = {shown(value)}: expected a SHA-256")
    return value


def words_by_name(value: object, what: str) -> dict[str, str]:
    """A table of a few short texts."""
    found = table(value, what)
    if len(found) > _MOST_ENTRIES:
        raise Flaw(f"{what}: {len(found)} entries, expected at most {_MOST_ENTRIES}")
    return {words(key, what): words(text, what) for key, text in found.items()}


def as_words(text: str) -> str:
    """Our own text as `words` takes it: what can't be printed is escaped, what is long is cut."""
    plain = (char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return "".join(plain)[:_MOST_TEXT]


def as_words_by_name(texts: Mapping[str, str]) -> dict[str, str]:
    """Our own texts as `words_by_name` takes them."""
    return {as_words(name): as_words(text) for name, text in texts.items()}
