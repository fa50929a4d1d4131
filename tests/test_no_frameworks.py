"""What needs no framework imports none; the converter imports next to nothing."""

from __future__ import annotations

import json

import pytest
from helpers import lively, python, small_spec

from deeplabzoo.weights_converter.convert import write_model

FRAMEWORKS = ("torch", "paddle", "tensorflow", "keras", "jax", "jaxlib")

_END = f"""
import json, sys
top = {{name.split(".")[0] for name in sys.modules}}
print(json.dumps([sorted(top & set({FRAMEWORKS!r})), sorted(top - set(sys.stdlib_module_names))]))
"""

_CLI = """
import sys
from deeplabzoo.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_model(lively(small_spec()), folder / "m.pth")
    return folder


def imported(code, *arguments):
    frameworks, outside = python(code + _END, *arguments)
    assert frameworks == []
    return {name for name in outside if not name.startswith(("_", "deeplabzoo", "cython"))}


def test_the_check_itself(requested):
    """The list shows a framework that is there."""
    name = {"torch": "torch", "paddle": "paddle", "keras": "keras"}[requested[0].split("/")[0]]
    assert name in python("import " + name + _END)[0]


def test_import():
    """`import deeplabzoo` alone costs no numpy either."""
    assert imported("import deeplabzoo\nassert deeplabzoo.__version__") <= {"sitecustomize"}


def test_core_knows_numpy_and_nothing_heavier():
    code = """
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core import analysis, reference, schedule, weights
build_graph(make_spec("v3plus", aux=True))
"""
    assert imported(code) == {"numpy"}


def test_unknown_public_name():
    python("""
import deeplabzoo
for name in deeplabzoo.__all__:
    getattr(deeplabzoo, name)
try:
    deeplabzoo.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
else:
    raise SystemExit("no error")
""")


@pytest.mark.parametrize("file_format", ["safetensors", "pdparams", "weights.h5"])
def test_convert_in_python(folder, tmp_path, file_format):
    code = """
import sys
import deeplabzoo
deeplabzoo.convert(sys.argv[1], sys.argv[2])
deeplabzoo.convert(sys.argv[2], sys.argv[3])
"""
    outside = imported(code, folder / "m.pth", tmp_path / f"a.{file_format}", tmp_path / "b.pth")
    assert {"numpy"} <= outside <= {"numpy", "h5py", "safetensors", "ml_dtypes", "tomli_w"}


def test_convert_a_tf_checkpoint(checkpoint, tmp_path):
    """TensorFlow's own format is read without TensorFlow."""
    code = "import sys, deeplabzoo\ndeeplabzoo.convert(sys.argv[1], sys.argv[2])"
    outside = imported(code, checkpoint, tmp_path / "m.safetensors")
    assert outside <= {"numpy", "safetensors", "h5py", "ml_dtypes"}
    # Only the heads of tensors are looked at for a preset's name; no picture is, so Pillow stays out.
    assert "PIL" not in outside


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("build", "convert", "parity", "predict", "info", "demo")),
        ["list"],
        ["list", "--json"],
        ["info", "v3plus", "--toml"],
        ["info", "v3", "--json"],
    ],
    ids=" ".join,
)
def test_commands(arguments):
    outside = imported(_CLI, *arguments)
    allowed = {"click", "colorama", "numpy", "tabulate", "wcwidth", "tomli_w", "h5py", "typing_extensions"}
    allowed |= {"safetensors", "ml_dtypes"}
    if "--help" in arguments or "--version" in arguments:
        allowed = {"click", "colorama", "typing_extensions"}
    assert outside <= allowed


def test_commands_on_files(folder, tmp_path):
    outside = set()
    for arguments in (
        ["convert", folder / "m.pth", tmp_path / "a.pdparams"],
        ["convert", tmp_path / "a.pdparams", tmp_path / "b.weights.h5"],
        ["convert", tmp_path / "b.weights.h5", "--dry-run"],
        ["inspect", tmp_path / "b.weights.h5", "--json"],
        ["info", tmp_path / "b.weights.h5"],
    ):
        outside |= imported(_CLI, *arguments)
    assert {"click", "h5py"} <= outside
    assert outside <= {"click", "colorama", "numpy", "h5py", "safetensors", "tabulate", "wcwidth", "tomli_w", "ml_dtypes",
                       "typing_extensions"}  # fmt: skip


def test_json_is_json():
    """The helper reads the last line; a program that prints something else there must not pass."""
    with pytest.raises(json.JSONDecodeError):
        python("print('no json')")
    with pytest.raises(AssertionError):
        python("raise SystemExit(1)")
