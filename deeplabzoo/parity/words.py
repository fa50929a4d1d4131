"""How numbers and text of a parity run are written, on pages and in files alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from deeplabzoo.parity.report import Row

Level = Literal["clear", "below", "near", "OVER"]

LEVELS: dict[Level, str] = {
    "clear": "at most 1 % of the bound",
    "below": "at most 30 % of it",
    "near": "at most the bound itself",
    "OVER": "over the bound, or not finite",
}
"""What the share of a bound is called, and which share that is."""


def printable(value: object) -> str:
    """Text in which everything but line breaks can be seen.

    Control characters, halves of surrogates and signs that turn the direction of reading become escapes: names from
    files may hold them, XML forbids the first two, and the last can make a line lie.
    """
    text = str(value)
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def one_line(value: object) -> str:
    """Printable text without line breaks."""
    return printable(" ".join(str(value).split()))


def number(value: float) -> str:
    """An error or a bound: `3.2e-15`, `1e-8`, `0`, `not finite`."""
    if not math.isfinite(value):
        return "not finite"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}" if value else "0"


def percent(share: float) -> str:
    """A share from 0 to 1 that says 0 % and 100 % only where it is exactly that."""
    if share in (0, 1):
        return "100 %" if share else "0 %"
    if share < 1e-6:
        return "under 0.0001 %"
    distance = min(share, 1 - share)
    return f"{share * 100:.{max(1, 1 - math.floor(math.log10(distance * 100)))}f} %"


def share(error: float, bound: float) -> str:
    """What part of the bound an error is: `0.032 %`, `41 times`, and nothing where it is no number."""
    ratio = error / bound
    if not math.isfinite(ratio):
        return ""
    if ratio <= 1:
        return percent(ratio)
    return f"{ratio:.3g} times" if ratio < 1000 else f"{number(ratio)} times"


def judged(error: float, bound: float) -> str:
    """An error with its bound, in words."""
    part = share(error, bound)
    if not part:
        return f"{number(error)}, bound {number(bound)}"
    return f"{number(error)}, {part}{' of' if error <= bound else ''} the bound {number(bound)}"


def level(error: float, bound: float) -> Level:
    """How near an error is to its bound, in four levels."""
    ratio = error / bound
    if not ratio <= 1:
        return "OVER"
    return "near" if ratio > 0.3 else "below" if ratio > 0.01 else "clear"


def against(first: str, second: str) -> str:
    """A pair of sides."""
    return f"{first} against {second}"


def where(row: Row) -> str:
    """What was compared, after which step, on which input."""
    step = "" if row.step is None else f" after step {row.step}"
    return f"{row.name}{step}, {row.case}"


def sentence(row: Row) -> str:
    """A comparison in words."""
    return f"{row.check}, {against(row.first, row.second)}: {where(row)}: {judged(row.error, row.bound)}"


def by_pair(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by the two sides, in the order they come; those of a pair farthest over their bound, or nearest to it, first."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row.first, row.second), []).append(row)
    return {pair: sorted(rows, key=lambda row: -row.error / row.bound) for pair, rows in pairs.items()}
