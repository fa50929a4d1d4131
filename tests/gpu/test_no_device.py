"""A device that is not there: one line from every command that takes `--device`. Needs no GPU, so the main suite runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_common import installed, needed

from deeplabzoo.backends import resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError
from deeplabzoo.zoo.models import named_spec

GOLDEN = Path(__file__).with_name("v3plus_mobilenet_v2.golden")
PRESET = "v3plus_mobilenet_v2"


def without_gpu(name: str) -> str:
    """Full name of a backend that is installed and has no GPU here, or a skip."""
    full = resolve(installed(name)).name
    try:
        with Worker(full, device="gpu"):
            pytest.skip(f"{full} has a GPU here")
    except BackendError:
        return full


def refused(*arguments: object) -> list[str]:
    """What a command says on stderr that fails with status 1 and prints nothing on stdout; without its notes."""
    runner = needed("click.testing").CliRunner()
    result = runner.invoke(needed("deeplabzoo.cli").main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("note: ")]


def there_is_none(name: str) -> str:
    return f"{name} on device 'gpu': expected one of cpu, which is all there is here"


@pytest.mark.parametrize("name", ["torch", "paddle", "keras", "keras/jax", "keras/torch"])
def test_build(name):
    name = without_gpu(name)
    lines = refused("build", "--arch", PRESET, "--backend", name, "--device", "gpu")
    assert lines == [f"Error: {there_is_none(name)}"]


def test_predict(tmp_path):
    name = without_gpu("torch")
    needed("PIL.Image").new("RGB", (65, 65), "green").save(tmp_path / "photo.png")
    spec = named_spec(PRESET).narrowed(8)
    model = needed("deeplabzoo.weights_converter.canonical").Canonical(spec, seeded_weights(build_graph(spec)))
    weights = tmp_path / "model.safetensors"
    needed("deeplabzoo.weights_converter.convert").write_model(model, weights)
    where = ("--backend", name, "--device", "gpu", "--output", tmp_path / "out")
    lines = refused("predict", tmp_path / "photo.png", "--weights", weights, *where)
    assert lines == [f"Error: {there_is_none(name)}"]
    assert not list((tmp_path / "out").glob("*"))


def test_parity():
    names = ",".join((without_gpu("torch"), without_gpu("keras/jax")))
    lines = refused(
        "parity", "--arch", PRESET, "--narrow", 8, "--backends", names, "--device", "gpu", "--size", "65x65"
    )
    assert lines == ["Error: device gpu: none of torch, keras/jax has a GPU here; use --device cpu"]


def test_golden_check():
    """Its lines name each backend; what was recorded is not judged by nobody."""
    lines = refused("golden", "check", GOLDEN, "--backends", without_gpu("torch"), "--device", "gpu")
    assert f"torch: failed: {there_is_none('torch')}" in lines
    assert lines[-1].endswith("gpu: nobody could be judged: FAILED")
