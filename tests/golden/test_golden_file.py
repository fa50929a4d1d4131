"""Files of goldens: whatever they hold, they are harmless."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from golden_changes import GRAPH, SIZE, SPEC, rewritten
from test_cli import fails

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.errors import DeepLabZooError, FormatError
from deeplabzoo.parity import golden_file
from deeplabzoo.parity.golden_file import Golden, check_limits
from deeplabzoo.weights_converter.formats import safetensors
from deeplabzoo.zoo.models import named_spec


def test_files_that_are_no_goldens(small, tmp_path):
    _, path = small
    content = path.read_bytes()
    safetensors.write(tmp_path / "weights.safetensors", {"a": np.ones(3)})
    (tmp_path / "text.golden").write_text("no golden at all")
    (tmp_path / "empty.golden").write_bytes(b"")
    (tmp_path / "short.golden").write_bytes(content[:-100])
    (tmp_path / "shorter.golden").write_bytes(content[:100])
    flipped = bytearray(content)
    flipped[-5] ^= 1
    (tmp_path / "flipped.golden").write_bytes(flipped)
    for name, match in {
        "weights.safetensors": "safetensors, but not a golden: expected a file of `deeplabzoo golden record`",
        "text.golden": "not a golden: expected a file of",
        "empty.golden": "an empty file",
        "missing.golden": "no such file",
        "short.golden": "truncated",
        "shorter.golden": "the header claims",
        "flipped.golden": "damaged: its numbers are not those that were recorded",
        ".": "a folder; expected a golden",
    }.items():
        fails("golden", "show", tmp_path / name, code=1, match=match)
        with pytest.raises(FormatError, match=match):
            Golden.load(tmp_path / name)


def test_another_version(small, tmp_path):
    golden, path = small
    target = tmp_path / "g"

    def claims(match, change):
        with pytest.raises(FormatError, match=match) as caught:
            Golden.load(rewritten(path, change, target))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    claims(
        rf"format 2, written by deeplabzoo {golden.environment['deeplabzoo']}: this version .* reads format 1",
        lambda data, _: data.update(format=2),
    )
    claims(
        r"can't read its spec, written by deeplabzoo .*unknown field swiglu",
        lambda data, _: data["spec"].update(swiglu=1),
    )
    other = SPEC.replace(aspp=SPEC.aspp.replace(epsilon=2e-5))
    text = claims(
        "the spec in it or the builder of the graph has changed", lambda data, _: data.update(spec=other.to_dict())
    )
    assert golden.graph_digest in text
    assert build_graph(other).digest() in text
    flipped = SPEC.replace(output=SPEC.output.replace(align_corners=not SPEC.output.align_corners))
    claims("another graph than when it was recorded", lambda data, _: data.update(spec=flipped.to_dict()))


HOSTILE = (None, True, -1, 2**70, 2**31, 1.5, float("nan"), "", "x" * 600, "\x1b[2J", [], [[]], {}, {"a": {}})


def places(data, path=()):
    """Ways to everything in plain data."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def test_every_claim_is_checked(small, tmp_path):
    """Anything else anywhere in the JSON, with a right seal: read or refused, never more than that."""
    _, path = small
    stored = safetensors.read(path)
    arrays = {name: np.array(array) for name, array in stored.tensors.items()}
    text = stored.metadata[golden_file._KEY]
    random = np.random.default_rng(0)
    ways = [way for way in places(json.loads(text)) if way]
    target, refused = tmp_path / "g", 0
    tracemalloc.start()
    for n in range(200):
        data = json.loads(text)
        *before, last = ways[n] if n < len(ways) else ways[random.integers(len(ways))]
        inner = data
        for key in before:
            inner = inner[key]
        inner[last] = HOSTILE[random.integers(len(HOSTILE))]
        forged = json.dumps(data)
        safetensors.write(
            target, arrays, {golden_file._KEY: forged, golden_file._SEAL: golden_file._seal(forged, arrays)}
        )
        refused += _harmless(target)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert refused > 130


def test_any_bytes(small, tmp_path):
    content = small[1].read_bytes()
    random = np.random.default_rng(1)
    header = int.from_bytes(content[:8], "little") + 8
    for n in range(300):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(8 if n % 2 else header)] = random.integers(256)
        if n % 5 == 0:
            del damaged[random.integers(len(damaged)) :]
        (tmp_path / "g").write_bytes(damaged)
        if bytes(damaged) != content:
            assert _harmless(tmp_path / "g")


def _harmless(path):
    try:
        Golden.load(path)
    except DeepLabZooError as error:
        assert isinstance(error, FormatError)
        text = str(error)
        assert text.isprintable()
        assert str(path) in text
        assert len(text) < 1000
        return True
    return False


def test_claims_of_size(small, tmp_path):
    """What is replayed must not take all the memory there is."""
    _, path = small
    target = tmp_path / "g"
    for change, match in (
        (lambda data, arrays: data["inputs"][0].update(height=2**40), "a golden allows 134217728; take a smaller size"),
        (lambda data, arrays: data["inputs"][0].update(batch=2**60), "a golden allows"),
        (lambda data, arrays: data.update(inputs=data["inputs"] * 17), "inputs: expected a list of at most 16"),
        (lambda data, arrays: arrays.update(extra=np.ones(3)), "tensor 'extra' is missing or not expected"),
        (lambda data, arrays: arrays.__delitem__("record0.input0.out"), "tensor 'record0.input0.out' is missing"),
        (lambda data, arrays: data["records"].__delitem__(0), "expected"),
        (lambda data, arrays: arrays["record1.input0.out"].fill(np.nan), "expected finite float64"),
        (lambda data, arrays: arrays["record0.input0.gradients"].fill(-1), "a norm below zero"),
        (lambda data, arrays: data["inputs"][0]["grids"]["out"][0].reverse(), r"places \(32, .*, expected \(0, "),
        (
            lambda data, arrays: data["inputs"][0]["grids"]["out"].__delitem__(1),
            "grid of out: 1 lists, expected rows and columns",
        ),
    ):
        with pytest.raises(FormatError, match=match):
            Golden.load(rewritten(path, change, target))
    wide = named_spec("v3plus", backbone={"name": "xception65", "width": 9.0})

    def widen(data, arrays):
        data.update(spec=wide.to_dict(), graph_sha256=build_graph(wide).digest())

    with pytest.raises(FormatError, match=r"a network of \d+ parameters: a golden holds at most 268435456"):
        Golden.load(rewritten(path, widen, target))
    with target.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(FormatError, match="a golden takes at most"):
        Golden.load(target)
    check_limits(GRAPH, [(2, *SIZE)])


def test_a_grid_that_sees_less(small, tmp_path):
    """One place, with the right value at it, would pass nearly every fault."""
    _, path = small

    def narrow(data, arrays):
        rows, columns = data["inputs"][0]["grids"]["out"]
        del rows[1:], columns[1:]
        for n in range(3):
            arrays[f"record{n}.input0.out"] = arrays[f"record{n}.input0.out"][:, :, :1, :1]

    with pytest.raises(FormatError, match=r"grid of out, 2x33x49: places \(0\), expected \(0, 2, 3, .*; record again"):
        Golden.load(rewritten(path, narrow, tmp_path / "g"))


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "seed 0\nError: all is well", "a\u202eb", "\ud800", "x" * 501])
def test_text_that_is_no_line(small, tmp_path, text):
    """Nothing of a stranger's moves the cursor or begins a line of its own."""
    _, path = small
    ways = (
        ("weights", lambda data, _: data.update(weights=text, weights_seed=None)),
        ("model", lambda data, _: data.update(model=text)),
        ("environment", lambda data, _: data["environment"].update(numpy=text)),
        ("environment", lambda data, _: data["environment"].update({text: "1"})),
        ("versions", lambda data, _: data["records"][1]["versions"].update(onnx=text)),
        ("left_out", lambda data, _: data["records"][1].update(left_out=text)),
    )
    for what, change in ways:
        target = rewritten(path, change, tmp_path / "g")
        with pytest.raises(FormatError, match=f"{what} = .*: expected printable text of at most 500") as caught:
            Golden.load(target)
        assert str(caught.value).isprintable()
    fails("golden", "check", target, code=1, match="expected printable text")


def test_errors_of_the_command_line_are_one_line(tmp_path):
    result = fails("golden", "show", tmp_path / "a\x1b[2J\u2028b", code=1, match=r"a\\x1b\[2J b: no such file")
    assert "\x1b" not in result.stderr
