"""Parity certificates: what they say, and how they travel with the weights that they are of."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import struct

import numpy as np
import pytest
from test_cli import call

import deeplabzoo as dz
from deeplabzoo.cli import inspect_command
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import FormatError, OutputError, WeightsError
from deeplabzoo.parity.certificate import (
    KEY,
    certificate,
    check_delivery,
    deliver,
    embed,
    read_certificate,
    summary,
    verify,
    write_certificate,
)
from deeplabzoo.parity.report import Report
from deeplabzoo.parity.run import parity
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical, fingerprint
from deeplabzoo.weights_converter.convert import convert, read_source, write_model
from deeplabzoo.weights_converter.formats import safetensors

SPEC = dz.spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3)).narrowed(8)
WEIGHTS = seeded_weights(build_graph(SPEC), 0, statistics="lively")
DATE = datetime.datetime(2030, 5, 6, 7, 8, 9, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))


@pytest.fixture(scope="module")
def report() -> Report:
    model = Canonical(SPEC, WEIGHTS)
    return parity(weights=model, backends=["onnx"], sizes=[(49, 65), (33, 33)], trace=True)


@pytest.fixture
def file(tmp_path):
    """The weights of the report, in a file."""
    path = tmp_path / "model.safetensors"
    write_model(Canonical(SPEC, WEIGHTS), path)
    return path


def body(path):
    """Everything after the header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 8 == 0
    return data[8 + length :]


def with_error(report, error):
    return dataclasses.replace(report, rows=(dataclasses.replace(report.rows[0], error=error), *report.rows[1:]))


def test_what_it_says(report):
    made = certificate(report, DATE)
    assert made["format"] == 1
    assert made["verdict"] == "passed"
    assert made["date"] == "2030-05-06T05:08:09+00:00"
    assert made["deeplabzoo"] == dz.__version__
    assert made["graph_sha256"] == build_graph(SPEC).digest()
    assert made["inputs"] == [{"input": "2x49x65", "all_taps_live": True}, {"input": "2x33x33", "all_taps_live": False}]
    (pair,) = made["checks"]["forward"]["pairs"]
    assert (pair["first"], pair["second"], pair["bound"]) == ("onnx", "numpy float64", 1e-11)
    assert pair["error"] == max(row.error for row in report.rows) > 0
    assert made["trace"] == {"verdict": "passed", "blamed": {"onnx": None}}
    assert made["sides"][0]["versions"]["onnx"]
    assert made["environment"]["numpy"] == np.__version__
    assert len(json.dumps(made, allow_nan=False)) < 3000


def test_it_never_passes_in_silence(report):
    failed = certificate(with_error(report, 1e-3), DATE)
    assert (failed["verdict"], failed["checks"]["forward"]["verdict"]) == ("failed", "failed")
    infinite = certificate(with_error(report, float("inf")), DATE)
    assert infinite["checks"]["forward"]["pairs"][0]["error"] is None
    assert infinite["verdict"] == "failed"
    json.dumps(infinite, allow_nan=False)
    assert "forward not finite" in summary(infinite, "")
    died = dataclasses.replace(report, sides=(dataclasses.replace(report.sides[0], failure="it died"),))
    assert certificate(died, DATE)["verdict"] == "failed"
    assert certificate(died, DATE)["sides"][0]["failure"] == "it died"
    blamed = dataclasses.replace(report.trace, blamed={"onnx": report.trace.rows[3]})
    made = certificate(dataclasses.replace(report, trace=blamed), DATE)
    assert made["trace"] == {"verdict": "failed", "blamed": {"onnx": report.trace.rows[3].node}}
    nobody = certificate(dataclasses.replace(report, checks=("forward", "gradients")), DATE)
    assert nobody["checks"]["gradients"] == {"verdict": "not judged", "pairs": []}
    assert "gradients not judged" in summary(nobody, "")


def test_another_dtype_than_was_asked_for_passes_nothing(report):
    """What was compared in float64 in place of float32 is told, and is no pass; it may be a failure."""
    lower = dataclasses.replace(report, dtype="float32")
    assert lower.not_judged == ("forward",)
    made = certificate(lower, DATE)
    assert made["checks"]["forward"]["verdict"] == "not judged"
    assert made["checks"]["forward"]["pairs"][0]["passed"]
    assert "forward not judged" in summary(made, "")
    assert certificate(with_error(lower, 1.0), DATE)["checks"]["forward"]["verdict"] == "failed"


def test_it_does_not_say_where_files_lay(report):
    told = dataclasses.replace(report, model="v3, /home/me/a.pth", weights="/home/me/a.pth")
    assert certificate(told, DATE)["model"] == "v3, a.pth"


def test_a_date_without_a_zone(report):
    with pytest.raises(OutputError, match="has no time zone"):
        certificate(report, DATE.replace(tzinfo=None))


def test_json(report, tmp_path, file):
    path = tmp_path / "model.json"
    write_certificate(report, path, DATE)
    assert read_certificate(path) == certificate(report, DATE)
    assert verify(file, read_certificate(path)) == ""
    write_model(Canonical(SPEC, WEIGHTS), tmp_path / "model.pth")
    assert verify(tmp_path / "model.pth", read_certificate(path)) == ""


def test_paths_as_text(report, tmp_path, file):
    """In any case of letters."""
    write_certificate(report, str(tmp_path / "a.json"), DATE)
    assert read_certificate(str(tmp_path / "a.json")) == certificate(report, DATE)
    check_delivery(str(tmp_path / "b.JSON"))
    deliver(report, str(tmp_path / "b.JSON"))
    assert read_certificate(str(tmp_path / "b.JSON"))["verdict"] == "passed"
    embed(certificate(report, DATE), str(file))
    assert verify(str(file)) == ""
    upper = file.rename(tmp_path / "model.SAFETENSORS")
    check_delivery(str(upper), Canonical(SPEC, WEIGHTS))
    deliver(report, upper)
    assert verify(str(upper)) == ""


def test_embedding_touches_no_tensor(report, file):
    before, tensors = formats.read(file).metadata, body(file)
    print_of = fingerprint(formats.read(file).tensors)
    embed(certificate(report, DATE), file)
    checkpoint = formats.read(file)
    assert body(file) == tensors
    assert {name: text for name, text in checkpoint.metadata.items() if name != KEY} == before
    assert fingerprint(checkpoint.tensors) == print_of
    assert read_certificate(file) == certificate(report, DATE)
    assert verify(file) == ""
    back = read_source(file).model
    assert back.spec == SPEC
    assert all(np.array_equal(back.weights[name], array) for name, array in WEIGHTS.items())
    embed(certificate(with_error(report, 1.0), DATE), file)  # the older one goes
    assert read_certificate(file)["verdict"] == "failed"
    assert body(file) == tensors
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_way_back_stays_exact(report, tmp_path):
    """A converted file that got a certificate gives the source again, bit for bit."""
    write_model(Canonical(SPEC, WEIGHTS), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    deliver(report, tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth")
    first, last = (hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a.pth", "c.pth"))
    assert first == last


def test_it_is_of_one_file(report, file):
    made, before = certificate(report, DATE), file.read_bytes()
    embed(made, file)
    wrong = {**WEIGHTS, "classifier.conv.bias": WEIGHTS["classifier.conv.bias"] + np.float32(1e-3)}
    checkpoint = formats.read(file)
    safetensors.write(file, wrong, checkpoint.metadata)  # somebody trains on and keeps the metadata
    assert verify(file).startswith("the certificate is of other weights: SHA-256 ")
    file.write_bytes(before)
    write_model(Canonical(SPEC.replace(aspp=SPEC.aspp.replace(rates=(1, 2, 4))), WEIGHTS), file, force=True)
    before = file.read_bytes()
    with pytest.raises(WeightsError, match="the certificate is of another network: SHA-256 "):
        embed(made, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_where_it_can_go(report, tmp_path, file):
    deliver(report, tmp_path / "model.json")
    assert read_certificate(tmp_path / "model.json")["verdict"] == "passed"
    deliver(report, file)
    assert datetime.datetime.fromisoformat(read_certificate(file)["date"]).tzinfo is not None
    for name, text in (
        ("model.pth", r"expected \.json, which is written, or the \.safetensors file"),
        ("model.jsn", r"did you mean '\.json'"),
        ("absent.safetensors", "there is no such file to embed it in"),
    ):
        with pytest.raises(OutputError, match=text):
            check_delivery(tmp_path / name)
        with pytest.raises(OutputError, match=text):
            deliver(report, tmp_path / name)
        assert not (tmp_path / name).exists()
    check_delivery(file, Canonical(SPEC, WEIGHTS))
    changed = {name: array + 1 for name, array in WEIGHTS.items()}
    for model in (None, Canonical(SPEC, changed), Canonical(SPEC.replace(output_stride=8), WEIGHTS)):
        with pytest.raises(WeightsError, match="holds another model than the one that is judged; expected --weights "):
            check_delivery(file, model)
    write_model(Canonical(SPEC, WEIGHTS), tmp_path / "other.pth")
    (tmp_path / "other.pth").rename(tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="is of format torch"):
        deliver(report, tmp_path / "other.safetensors")


BROKEN = {
    "[": "the certificate is not JSON",
    "[" * 100_000: "the certificate is not JSON",
    "[]": "a certificate of format None",
    '{"format": 2}': "a certificate of format 2, this version reads 1",
    '{"format": 1, "checks": {}}': "lacks what every one has",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_broken_certificates(text, report, tmp_path, file):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match=BROKEN[text]):
        read_certificate(tmp_path / "a.json")
    safetensors.write(file, WEIGHTS, {**formats.read(file).metadata, KEY: text})
    with pytest.raises(FormatError, match=BROKEN[text]):
        verify(file)
    told = call("inspect", file).stdout
    assert BROKEN[text] in told
    embed(certificate(report, DATE), file)
    assert verify(file) == ""


@pytest.mark.parametrize("checks", [[], {}, {"forward": {}}, {"forward": {"verdict": 1, "pairs": []}}, {"a": {"verdict": "", "pairs": [1]}}, {"a": {"verdict": "", "pairs": [{"error": 10**400}]}}])  # fmt: skip
def test_certificates_of_another_form(checks, report, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({**certificate(report, DATE), "checks": checks}))
    with pytest.raises(FormatError, match="lacks what every one has"):
        read_certificate(tmp_path / "a.json")


@pytest.mark.parametrize("error", ["NaN", "Infinity", "-Infinity", "-1e-9", "1e999"])
def test_errors_that_no_run_gives(error, report, tmp_path):
    text = json.dumps(certificate(with_error(report, 0.5), DATE)).replace("0.5", error)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match=r"error of forward = -?(nan|inf|1e-09): expected a finite number of at"):
        read_certificate(tmp_path / "a.json")


def test_verdicts_that_no_run_gives(report, tmp_path):
    made = certificate(report, DATE)
    checks = {"forward": {**made["checks"]["forward"], "verdict": "fine"}}
    for change, match in (
        ({"verdict": "\x1b[2J"}, r"verdict of the certificate = \\x1b\[2J: expected passed or failed; make it again"),
        ({"verdict": "not judged"}, "= not judged: expected passed or failed"),
        ({"checks": checks}, "verdict of forward = fine: expected passed or failed or not judged"),
    ):
        (tmp_path / "a.json").write_text(json.dumps({**made, **change}))
        with pytest.raises(FormatError, match=match):
            read_certificate(tmp_path / "a.json")


def test_files_that_are_none(tmp_path, file):
    assert read_certificate(file) is None
    with pytest.raises(FormatError, match=r"model\.safetensors has no certificate"):
        verify(file)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="can't be read"):
        read_certificate(tmp_path / "a.json")
    with pytest.raises(FormatError, match="can't be read"):
        read_certificate(tmp_path / "absent.json")
    (tmp_path / "a.json").write_text(" " * 2_000_000)
    with pytest.raises(FormatError, match="2000000 bytes are no certificate"):
        read_certificate(tmp_path / "a.json")


def test_metadata_that_can_not_be_stored(file):
    with pytest.raises(OutputError, match="text -> text"):
        safetensors.write_with_metadata(file, file.with_suffix(".b"), {"a": 1})
    with pytest.raises(OutputError, match="the limit is"):
        safetensors.write_with_metadata(file, file.with_suffix(".b"), {"a": "x" * 5_000_000})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        safetensors.write_with_metadata(file, file.with_suffix(".b"), {})


def test_inspect(report, file):
    assert inspect_command._CERTIFICATE == KEY
    assert "certificate" not in call("inspect", file).stdout
    assert "certificate" not in json.loads(call("inspect", file, "--json").stdout)
    embed(certificate(report, DATE), file)
    (line,) = [line for line in call("inspect", file).stdout.splitlines() if line.startswith("certificate ")]
    assert line.split(maxsplit=1)[1].startswith("passed in float64 on cpu, 2030-05-06: forward ")
    assert line.endswith("; fits the tensors")
    data = json.loads(call("inspect", file, "--json").stdout)["certificate"]
    assert data["fits"]
    assert data["weights_sha256"] == report.weights_digest
    wrong = {**WEIGHTS, "classifier.conv.bias": WEIGHTS["classifier.conv.bias"] * np.float32(2)}
    hostile = {**certificate(report, DATE), "fits": True, "summary": "all is well", "device": "\x1b[2J"}
    safetensors.write(file, wrong, {**formats.read(file).metadata, KEY: json.dumps(hostile)})
    told = call("inspect", file).stdout
    assert "\x1b" not in told
    assert "the certificate is of other weights" in told
    assert not json.loads(call("inspect", file, "--json").stdout)["certificate"]["fits"]


def test_command(tmp_path, file):
    """A run puts it into the file that it judged."""
    call("parity", "--weights", file, "--backends", "onnx", "--size", "49x65", "--certificate", file)
    assert verify(file) == ""
    assert read_certificate(file)["inputs"] == [{"input": "2x49x65", "all_taps_live": True}]
