"""What a check of a golden found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.report import Check

KINK = "in float32 an input of a ReLU as near to zero as rounding can change its gradient's side"
"""Why float32 gradients of two right networks may differ by far more than rounding."""


@dataclass(frozen=True)
class DriftRow:
    """One comparison with what was recorded.

    Attributes:
        side: backend that was run.
        dtype: it computed in.
        case: the input.
        check: `forward` or `gradients`.
        name: the output's name, or of all gradients the one that drifted most; where none did, the one farthest off the
            truth.
        drift: error against its own record; None where it has none.
        truth: error against the recorded truth.
        bound: the largest allowed of both.
        bits: whether every bit of the output is the same; None without an own record, and for gradients.
        labels: whether every pixel has the recorded label; None for gradients.
    """

    side: str
    dtype: str
    case: Case
    check: Check
    name: str
    drift: float | None
    truth: float
    bound: float
    bits: bool | None = None
    labels: bool | None = None

    @property
    def worst(self) -> float:
        """The larger of both errors."""
        return max(self.truth, self.drift or 0.0)

    @property
    def passed(self) -> bool:
        """Whether the errors are within the bound and, in float64, the labels equal.

        In float32 two classes may be nearer to each other than rounding, so that labels are told, not judged.
        """
        return self.worst <= self.bound and (self.labels is not False or self.dtype != "float64")

    @property
    def kink(self) -> bool:
        """Whether `KINK` may be all that is wrong."""
        return not self.passed and self.check == "gradients" and self.dtype == "float32"


@dataclass(frozen=True)
class Change:
    """What is another now than when the golden was recorded: a version, the machine; `-` where it was not there."""

    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Drift:
    """Outcome of a check; `passed` is the verdict.

    Attributes:
        model: title of the golden.
        device: `cpu` or `gpu`.
        rows: every comparison.
        changes: versions and machine, only what differs.
        failures: why backends have no (further) results, in one line each.
        left_out: why backends have no gradients.
    """

    model: str
    device: str
    rows: tuple[DriftRow, ...] = field(repr=False)
    changes: tuple[Change, ...]
    failures: Mapping[str, str]
    left_out: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether there were comparisons, all within their bounds, and nobody failed."""
        return bool(self.rows) and all(row.passed for row in self.rows) and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "passed": self.passed,
            "device": self.device,
            "rows": [{**vars(row), "case": str(row.case), "passed": row.passed} for row in self.rows],
            "changes": [vars(change) for change in self.changes],
            "failures": dict(self.failures),
            "left_out": dict(self.left_out),
        }
