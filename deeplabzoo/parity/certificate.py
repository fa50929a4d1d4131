"""The parity certificate: what a parity run found, small enough to travel in the metadata of the weights it judged.

It names graph and weights by their digests, so that anyone can see whether it still belongs to the file it is in. It
says what was found and proves nothing of who says it: nobody has signed it.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplabzoo._version import __version__
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import Weights
from deeplabzoo.errors import FormatError, OutputError, WeightsError, near_match
from deeplabzoo.files import beside_then_rename
from deeplabzoo.parity.cases import weights_digest
from deeplabzoo.parity.report import Check, Report, Row
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.formats import Checkpoint, safetensors, shown
from deeplabzoo.weights_converter.source import read_source

FORMAT_VERSION = 1
KEY = "deeplabzoo.certificate"
"""Key of the JSON in a safetensors file's metadata."""

_SUFFIXES = (".json", ".safetensors")
_VERDICTS = ("passed", "failed")
_NOT_JUDGED = "not judged"
_TEXTS = ("verdict", "date", "graph_sha256", "weights_sha256", "dtype", "device")
_LARGEST = 1_000_000  # bytes; a certificate takes a few thousand


def certificate(report: Report, date: datetime.datetime) -> dict[str, Any]:
    """What a report found, as plain data for JSON.

    Each check has its own verdict: `passed`, `failed`, or `not judged` where nobody could make it.

    Args:
        report: of `parity`.
        date: of the run, with its time zone; written in UTC.

    Raises:
        OutputError: a date without a time zone.
    """
    if date.tzinfo is None:
        raise OutputError(f"date {date} has no time zone: expected one, such as datetime.now(UTC)")
    cases = {str(row.case): row.case.live for row in report.rows}
    return {
        "format": FORMAT_VERSION,
        "deeplabzoo": report.environment.get("deeplabzoo", __version__),
        "verdict": "passed" if report.passed else "failed",
        "date": date.astimezone(datetime.UTC).isoformat(timespec="seconds"),
        # The name of a file says enough; where it lay is nobody else's affair.
        "model": report.model.replace(report.weights, Path(report.weights).name),
        "graph_sha256": report.graph_digest,
        "weights_sha256": report.weights_digest,
        "dtype": report.dtype,
        "device": report.device,
        "inputs": [{"input": name, "all_taps_live": live} for name, live in cases.items()],
        "checks": {check: _check(report, check) for check in report.checks},
        "trace": _trace(report),
        "sides": [
            {
                "name": side.name,
                "dtype": side.dtype,
                "device": side.device_name or side.device,
                "versions": dict(side.versions),
                "failure": side.failure,
                "left_out": dict(side.left_out),
            }
            for side in report.sides
        ],
        "environment": dict(report.environment),
    }


def write_certificate(report: Report, path: str | Path, date: datetime.datetime) -> None:
    """Write the certificate of a report as a JSON file, replacing what is there; `OutputError` where that can't be."""
    with beside_then_rename(Path(path)) as beside:
        beside.write_text(json.dumps(certificate(report, date), indent=1) + "\n", encoding="utf-8")


def embed(made: Mapping[str, Any], path: str | Path) -> None:
    """Put a certificate into the metadata of the safetensors file that it is of; tensors and other metadata stay.

    An older certificate is replaced.

    Raises:
        WeightsError: the file holds other weights, or another network, than were judged.
        FormatError, LayoutError: the file can't be read.
        OutputError: it can't be written.
    """
    path = Path(path)
    checkpoint = _safetensors(path)
    if problem := _misfit(made, path):
        raise WeightsError(f"{path}: {problem}; judge this file, with --weights {path}, and embed that certificate")
    with beside_then_rename(path) as beside:
        safetensors.write_with_metadata(
            path, beside, {**checkpoint.metadata, KEY: json.dumps(made, separators=(",", ":"))}
        )


def read_certificate(path: str | Path) -> dict[str, Any] | None:
    """The certificate in a `.json` file or in the metadata of a weights file; none where it holds none.

    Raises:
        FormatError: the file can't be read, or what it holds is no certificate of this version.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        text = formats.read(path).metadata.get(KEY)
        return None if text is None else _parsed(text, path)
    try:
        if path.stat().st_size > _LARGEST:
            raise FormatError(f"{path}: {path.stat().st_size} bytes are no certificate, which takes a few thousand")
        return _parsed(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: the certificate can't be read: {error}; expected JSON") from None


def verify(path: str | Path, made: Mapping[str, Any] | None = None) -> str:
    """Why a certificate does not fit the network and the tensors of a weights file, or an empty text where it does.

    That it fits says nothing of its verdict.

    Args:
        path: of the weights, in any known format.
        made: the certificate; by default the one in the file.

    Raises:
        FormatError: the file can't be read, or has no certificate.
        LayoutError: its tensors can't be told.
    """
    path = Path(path)
    if made is None:
        made = read_certificate(path)
    if made is None:
        raise FormatError(f"{path} has no certificate: expected one, as `deeplabzoo parity --certificate` embeds it")
    return _misfit(made, path)


def misfit(made: Mapping[str, Any], graph: Graph, weights: Weights) -> str:
    """Why a certificate is not of this network and these weights, or an empty text where it is."""
    whats = {"graph_sha256": "another network", "weights_sha256": "other weights"}
    for key, found in _digests(graph, weights).items():
        if made[key] != found:
            return f"the certificate is of {whats[key]}: SHA-256 {shown(made[key][:12])}..., here {found[:12]}..."
    return ""


def check_delivery(path: str | Path, model: Canonical | None = None) -> None:
    """Look before a long run whether `deliver` will be able to put its certificate.

    Args:
        path: of the certificate.
        model: that is to be judged; none for seeded weights, which no file holds.

    Raises:
        OutputError: another suffix, or no safetensors file to embed it in.
        WeightsError: the safetensors file holds another model.
        FormatError, LayoutError: it can't be read.
    """
    path = Path(path)
    if _suffix(path) == ".safetensors":
        _safetensors(path)
        held = read_source(path, lazy=True).model
        if model is None or _digests(held.graph, held.weights) != _digests(model.graph, model.weights):
            raise WeightsError(
                f"certificate {path}: the file holds another model than the one that is judged; expected --weights {path}, "
                "or a certificate that ends in .json"
            )


def deliver(report: Report, path: str | Path) -> None:
    """Write the certificate of a report, of today, to a `.json` file, or embed it in the `.safetensors` file judged.

    Raises:
        OutputError: another suffix, or a file that can't be written.
        WeightsError, FormatError, LayoutError: as for `embed`.
    """
    path = Path(path)
    suffix, today = _suffix(path), datetime.datetime.now(datetime.UTC)
    if suffix == ".json":
        write_certificate(report, path, today)
    else:
        embed(certificate(report, today), path)


def summary(made: Mapping[str, Any], problem: str) -> str:
    """One line: verdict, date, the worst error of each check, and whether the certificate still fits (`misfit`)."""
    checks = []
    for name, check in made["checks"].items():
        errors = [pair["error"] for pair in check["pairs"]]
        if check["verdict"] == _NOT_JUDGED or not errors:
            told = _NOT_JUDGED
        else:
            told = "not finite" if None in errors else f"{max(errors):.1e}"
        checks.append(f"{name} {told}")
    line = f"{made['verdict']} in {made['dtype']} on {made['device']}, {made['date'][:10]}: {', '.join(checks)}"
    return f"{line}; {problem or 'fits the tensors'}"


def _suffix(path: Path) -> str:
    """Which of the suffixes a certificate can go by, once it was looked at."""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise OutputError(
            f"certificate {path}: expected .json, which is written, or the .safetensors file that was judged"
            + near_match(suffix, _SUFFIXES)
        )
    if suffix == ".safetensors" and not path.is_file():
        raise OutputError(f"certificate {path}: there is no such file to embed it in; expected the weights judged")
    return suffix


def _safetensors(path: Path) -> Checkpoint:
    checkpoint = formats.read(path)
    if checkpoint.format != safetensors.NAME:
        raise FormatError(f"{path} is of format {checkpoint.format}: a certificate is embedded in safetensors alone")
    return checkpoint


def _digests(graph: Graph, weights: Weights) -> dict[str, str]:
    return {"graph_sha256": graph.digest(), "weights_sha256": weights_digest(graph, weights)}


def _misfit(made: Mapping[str, Any], path: Path) -> str:
    model = read_source(path, lazy=True).model
    return misfit(made, model.graph, model.weights)


def _check(report: Report, check: Check) -> dict[str, Any]:
    pairs = dict.fromkeys((row.first, row.second) for row in report.rows if row.check == check)
    worst = [report.worst(check, *pair) for pair in pairs]
    rows = [_row(row) for row in worst if row is not None]
    # What was made in another dtype, or on another device, than was asked for can fail a check, not pass it.
    verdict = _NOT_JUDGED if check in report.not_judged else "passed"
    return {"verdict": verdict if all(row["passed"] for row in rows) else "failed", "pairs": rows}


def _row(row: Row) -> dict[str, Any]:
    """The worst comparison of a pair; an error that is no finite number is null."""
    return {
        "first": row.first,
        "second": row.second,
        "error": row.error if math.isfinite(row.error) else None,
        "bound": row.bound,
        "passed": row.passed,
        "at": row.name,
        "step": row.step,
        "input": str(row.case),
    }


def _trace(report: Report) -> dict[str, Any] | None:
    if report.trace is None:
        return None
    blamed = {side: None if row is None else row.node for side, row in report.trace.blamed.items()}
    return {"verdict": "passed" if report.trace.passed else "failed", "blamed": blamed}


def _parsed(text: str, path: Path) -> dict[str, Any]:
    """The certificate in a text, of which at least what is looked at here is of the right form."""
    try:
        made = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the certificate is not JSON: {shown(error)}; make it again") from None
    version = made.get("format") if isinstance(made, dict) else None
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: a certificate of format {shown(version)}, this version reads {FORMAT_VERSION}; make it again"
        )
    sound = all(isinstance(made.get(name), str) for name in _TEXTS) and isinstance(made.get("checks"), dict)
    if not sound or not made["checks"] or not all(_is_check(check) for check in made["checks"].values()):
        raise FormatError(
            f"{path}: the certificate lacks what every one has ({', '.join(_TEXTS)}, checks with verdict and pairs, at "
            "least one); make it again"
        )
    _check_claims(made, path)
    return dict(made)


def _is_check(check: object) -> bool:
    pairs = check.get("pairs") if isinstance(check, dict) else None
    if not isinstance(pairs, list) or not isinstance(check, dict) or not isinstance(check.get("verdict"), str):
        return False
    return all(isinstance(pair, dict) and isinstance(pair.get("error", ""), float | None) for pair in pairs)


def _check_claims(made: Mapping[str, Any], path: Path) -> None:
    """`FormatError` for a verdict or an error that no run gives."""
    claimed: list[tuple[str, str, tuple[str, ...]]] = [("the certificate", made["verdict"], _VERDICTS)]
    claimed += [(name, check["verdict"], (*_VERDICTS, _NOT_JUDGED)) for name, check in made["checks"].items()]
    for what, verdict, known in claimed:
        if verdict not in known:
            raise FormatError(
                f"{path}: verdict of {shown(what)} = {shown(verdict)}: expected {' or '.join(known)}; make it again"
            )
    for name, check in made["checks"].items():
        for value in (pair["error"] for pair in check["pairs"]):
            if value is not None and not 0 <= value < math.inf:  # NaN is neither
                raise FormatError(
                    f"{path}: error of {shown(name)} = {value}: expected a finite number of at least 0, or null; make "
                    "it again"
                )
