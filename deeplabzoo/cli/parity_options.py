"""Options of `deeplabzoo parity` with rules of their own."""

from __future__ import annotations

import math
from typing import Any

import click

from deeplabzoo.errors import unknown

CHECKS = ("forward", "gradients", "training")
"""Written out, because the help must not wait for numpy; a test holds them against the library's."""


class ChecksType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases
    """Names of checks with commas between."""

    name = "checks"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse, each once, in the usual order."""
        if isinstance(value, tuple):
            return value
        names = [part.strip() for part in str(value).split(",") if part.strip()]
        for name in names:
            if name not in CHECKS:
                self.fail(unknown("check", name, CHECKS), param, ctx)
        if not names:
            self.fail(f"{value!r}: expected at least one of {', '.join(CHECKS)}", param, ctx)
        return tuple(check for check in CHECKS if check in names)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Shown in the help."""
        return "CHECK,..."


class BoundType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases
    """NUMBER, of the forward pass, or CHECK=NUMBER."""

    name = "bound"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse."""
        if isinstance(value, tuple):
            return value
        check, sign, text = str(value).rpartition("=")
        if sign and check not in CHECKS:
            self.fail(unknown("check", check, CHECKS), param, ctx)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= 1:
            self.fail(
                f"{value!r}: expected a number above 0 and at most 1, such as 1e-11 or gradients=1e-9", param, ctx
            )
        return check or "forward", number

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Shown in the help."""
        return "[CHECK=]X"
