"""What a parity run found, as plain data: who took part, every comparison, the trace, the pictures.

Pages and files are made of it by `parity.html`, `parity.junit` and `parity.certificate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.trace import Trace

Check = Literal["forward", "gradients", "training"]
CHECKS: tuple[Check, ...] = ("forward", "gradients", "training")


@dataclass(frozen=True)
class Side:
    """One who took part.

    Attributes:
        name: in tables; a backend's name, with dtype and device where they are not those of the run.
        dtype: it computed in.
        device: `cpu` or `gpu`.
        device_name: what the device calls itself.
        versions: of the framework's packages, and `python`.
        seconds: what it spent, by `start`, `load` and check.
        failure: one line that says why it has no (further) results; None where all went well.
        left_out: checks that it can't do, each with the reason.
    """

    name: str
    dtype: str
    device: str
    device_name: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        check: `forward`, `gradients` or `training`.
        case: the input.
        name: what was compared: an output (`out`, `aux`); for gradients a parameter, `input` or `loss`; for training a
            parameter, a running statistic, `loss`, or `update`, what all parameters moved by.
        first: side that was judged.
        second: side it was judged against; `cases.REFEREE` is the truth.
        error: see `parity.compare`; infinite where a value is not finite.
        bound: the largest allowed.
        step: after how many training steps; None for the other checks.
        labels: share of pixels with the same label; forward alone.
    """

    check: Check
    case: Case
    name: str
    first: str
    second: str
    error: float
    bound: float
    step: int | None = None
    labels: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = {name: value for name, value in vars(self).items() if name != "case"}
        return {**own, "input": str(self.case), "all_taps_live": self.case.live, "passed": self.passed}


@dataclass(frozen=True)
class Picture:
    """Where the labels of two sides differ.

    Attributes:
        case: the input.
        first: side that was judged.
        second: side it was judged against.
        image: uint8 H, W, 3; the photo, or for seeded images their own pixels brought to 0..255.
        differs: bool H, W.
    """

    case: Case
    first: str
    second: str
    image: np.ndarray
    differs: np.ndarray


@dataclass(frozen=True)
class Report:
    """Outcome of a parity run; `passed` is the verdict.

    Attributes:
        model: title.
        spec: the architecture as plain data.
        graph_digest: SHA-256 of the graph.
        weights_digest: SHA-256 of the canonical weights.
        weights: where they come from: `seed 0`, a file's name, `given weights`.
        dtype: what was judged.
        device: `cpu` or `gpu`.
        checks: that were asked for.
        sides: who took part, in the order asked for.
        rows: every comparison.
        blamed: for each side whose gradients or training steps are over a bound, the row that its fault shows in first
            (see `parity.blame`).
        trace: every node, where it was asked for.
        pictures: where labels differ, for each forward case.
        environment: `machine`, `system`, `python`, `numpy`, `deeplabzoo`.
        notes: what else is to be known, a line each.
    """

    model: str
    spec: Mapping[str, Any]
    graph_digest: str
    weights_digest: str
    weights: str
    dtype: str
    device: str
    checks: tuple[Check, ...]
    sides: tuple[Side, ...]
    rows: tuple[Row, ...] = field(repr=False)
    blamed: tuple[Row, ...] = ()
    trace: Trace | None = field(default=None, repr=False)
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[str, str]:
        """Why sides failed, by name."""
        return {side.name: side.failure for side in self.sides if side.failure is not None}

    @property
    def passed(self) -> bool:
        """Whether every check was made, all errors are within their bounds, no node is to blame and nobody failed."""
        good = all(row.passed for row in self.rows) and (self.trace is None or self.trace.passed)
        return bool(self.rows) and good and not self.failures and not self.not_judged

    @property
    def not_judged(self) -> tuple[Check, ...]:
        """Checks that were asked for and that nobody made in the dtype and on the device asked for."""
        right = {side.name for side in self.sides if (side.dtype, side.device) == (self.dtype, self.device)}
        made = {row.check for row in self.rows if {row.first, row.second} & right}
        return tuple(check for check in self.checks if check not in made)

    def worst(self, check: Check, first: str | None = None, second: str | None = None) -> Row | None:
        """The row nearest to its bound, or farthest over it, of a check (and of two sides); None where there is none."""
        rows = [
            row
            for row in self.rows
            if row.check == check and first in (None, row.first) and second in (None, row.second)
        ]
        return max(rows, key=lambda row: row.error / row.bound, default=None)

    def lines(self) -> list[str]:
        """The outcome in words: a line a check, a side of the trace and a failure, and the verdict last."""
        told = []
        for check in self.checks:
            if (worst := self.worst(check)) is not None:
                step = "" if worst.step is None else f" after step {worst.step}"
                told.append(
                    f"{check}: nearest to its bound {worst.bound:g} is {worst.error:.1e} at {worst.name}{step} "
                    f"({worst.first} against {worst.second}, {worst.case}): {'ok' if worst.passed else 'OVER'}"
                )
        for row in self.blamed:
            step = "" if row.step is None else f" after step {row.step}"
            told.append(f"{row.first}: {row.check} differ first at {row.name}{step}, by {row.error:.1e}")
        if self.trace is not None:
            told += self.trace.lines()
        told += [f"{check}: nobody was judged in {self.dtype} on {self.device}" for check in self.not_judged]
        for side in self.sides:
            told += [f"{side.name}: no {check}: {why}" for check, why in side.left_out.items()]
            told += [f"{side.name} FAILED: {side.failure}"] if side.failure is not None else []
        if self.trace is None and any(row.check == "forward" and not row.passed for row in self.rows):
            told.append("the forward pass differs: --trace (trace=True) names the node")
        told += [f"note: {note}" for note in self.notes]
        devices = ", ".join(sorted({side.device_name for side in self.sides if side.device_name})) or self.device
        told.append(f"{self.model}, {self.dtype} on {devices}: {'passed' if self.passed else 'FAILED'}")
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; pictures as counts of pixels."""
        return {
            "model": self.model,
            "passed": self.passed,
            "spec": dict(self.spec),
            "graph_sha256": self.graph_digest,
            "weights_sha256": self.weights_digest,
            "weights": self.weights,
            "dtype": self.dtype,
            "device": self.device,
            "checks": list(self.checks),
            "not_judged": list(self.not_judged),
            "environment": dict(self.environment),
            "sides": [_plain(vars(side)) for side in self.sides],
            "rows": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
            "blamed": [row.to_dict() for row in self.blamed],
            "trace": None if self.trace is None else self.trace.to_dict(),
            "labels_differ": [
                {
                    "input": str(picture.case),
                    "first": picture.first,
                    "second": picture.second,
                    "pixels": int(picture.differs.sum()),
                }
                for picture in self.pictures
            ],
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
