"""What is odd about the tensors of a file: things that load without an error and are rarely meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from deeplabzoo.weights_converter.formats import release, shown
from deeplabzoo.weights_converter.ledger import LedgerRow

_PIECE = 2**24
"""Values looked at in one go, so that the copy in float32 stays small."""


def oddities(tensors: Mapping[str, np.ndarray], ledger: Sequence[LedgerRow] = ()) -> list[str]:
    """One line for each kind of oddity, with the first names.

    Looked for: values that are no number or infinite, tensors that are all zero (kernels, scales and variances: shifts
    and means start so), negative variances, more than one element type, and, where a ledger tells, tensors stored
    twice, tensors that no network uses, training state, and tensors that were left out for other reasons.

    Args:
        tensors: by foreign name; read one at a time, each value once.
        ledger: of the same file.
    """
    roles = {row.foreign: row.canonical for row in ledger}
    found: dict[str, list[str]] = {}
    types: Counter[str] = Counter()
    for name in tensors:
        array = tensors[name]
        if array.dtype.kind not in "fV":
            continue
        types[str(array.dtype)] += 1
        role = roles.get(name, name).rsplit(".", 1)[-1].rsplit("/", 1)[-1]
        for kind in _kinds(array, role):
            found.setdefault(kind, []).append(name)
    lines = [f"{kind}: {_shortened(names)}" for kind, names in found.items()]
    if len(types) > 1:
        lines.append(f"several element types: {', '.join(f'{n} of {t}' for t, n in types.most_common())}")
    counts = Counter(row.canonical for row in ledger if row.canonical)
    doubled = [row.foreign for row in ledger if counts[row.canonical] > 1]
    if doubled:
        lines.append(
            f"{len(doubled)} names for {sum(n > 1 for n in counts.values())} tensors, stored twice: {_shortened(doubled)}"
        )
    reasons: dict[str, list[str]] = {}
    for row in ledger:
        if row.foreign and not row.canonical:
            reasons.setdefault(row.transform, []).append(row.foreign)
    return [*lines, *(f"{reason}: {_shortened(names)}" for reason, names in reasons.items())]


def _kinds(array: np.ndarray, role: str) -> list[str]:
    """What is odd about one tensor of real numbers."""
    lowest, highest, zero = 0.0, 0.0, True
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        piece = piece if piece.dtype.itemsize >= 4 and piece.dtype.kind == "f" else piece.astype(np.float32)
        # numpy's functions, not min and max of Python, which lose what is no number.
        lowest, highest = np.minimum(lowest, piece.min()), np.maximum(highest, piece.max())
        zero = zero and not piece.any()
        release(array)
    kinds = []
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        kinds.append("values that are no number" if np.isnan(lowest) or np.isnan(highest) else "infinite values")
    shift = role in ("bias", "beta", "biases", "running_mean", "_mean", "moving_mean", "1")
    if zero and flat.size and not shift:
        kinds.append("all zero")
    if role in ("running_var", "_variance", "moving_variance") and lowest < 0:
        kinds.append("negative variance")
    return kinds


def _shortened(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(map(shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
