"""Models of the PyTorch backend in `torch.compile` and `torch.export`."""

from __future__ import annotations

import io

import op_cases
import pytest
from helpers import small_spec
from torch_common import AUX, SPEC, asked_for, build, torch, x  # noqa: F401

from deeplabzoo.backends import resolve
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights


def built(graph: Graph):
    native = resolve("torch").module("build").build(graph)
    resolve("torch").module("weights").load_weights(native, seeded_weights(graph, 1, statistics="lively"))
    return native


COMPILED = {
    "v3plus": SPEC,
    "aux": AUX,
    "symmetric": small_spec(backbone={**SPEC.backbone.to_dict(), "padding": "symmetric"}),
}


def check_compiled(spec, sizes, **options):
    torch._dynamo.reset()
    native = build(spec)
    compiled = torch.compile(native, fullgraph=True, **options)
    with torch.no_grad():
        for size in sizes:
            images = x(2, 3, *size)
            torch.testing.assert_close(compiled(images), native(images), rtol=1e-4, atol=1e-4)


def test_compile():
    """One graph without a break."""
    check_compiled(AUX, ((33, 49),), backend="eager")


def test_compile_every_op():
    torch._dynamo.reset()
    native = built(op_cases.every_op())
    compiled = torch.compile(native, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for size in ((33, 49), (40, 58)):
            images = x(2, 3, *size)
            for name, value in native(images).items():
                torch.testing.assert_close(compiled(images)[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("spec", COMPILED.values(), ids=COMPILED)
def test_compile_for_several_sizes(spec):
    check_compiled(spec, ((33, 49), (64, 96), (65, 40)), backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, inside its compiler
def test_compile_with_inductor():
    check_compiled(SPEC, ((64, 96),))


EXPORTED = {
    "v3": small_spec("v3"),
    "v3plus": SPEC,
    "symmetric": small_spec("v3", backbone={"name": "mobilenet_v2", "padding": "symmetric"}),
    "aux": AUX,
}


@pytest.mark.parametrize(
    "spec", [pytest.param(s, marks=pytest.mark.slow, id=n) if n != "symmetric" else s for n, s in EXPORTED.items()]
)
def test_export(spec):
    """Exported once, with free batch, height and width."""
    native = build(spec)
    images = x(2, 3, 64, 96)
    free = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16), 3: torch.export.Dim("w", min=16)}
    dynamic = torch.export.export(native, (images,), dynamic_shapes=((free,),))
    program = dynamic.module()
    for shape in ((1, 3, 33, 49), (3, 3, 64, 65), (2, 3, 64, 96)):
        other = x(*shape)
        torch.testing.assert_close(program(other), native(other))
    assert set(dynamic.state_dict) == set(native.state_dict())
    stream = io.BytesIO()
    torch.export.save(dynamic, stream)
    stream.seek(0)
    torch.testing.assert_close(torch.export.load(stream).module()(images), native(images))


def test_export_every_op():
    native = built(op_cases.every_op())
    free = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16), 3: torch.export.Dim("w", min=16)}
    program = torch.export.export(native, (x(2, 3, 64, 96),), dynamic_shapes=((free,),)).module()
    for shape in ((1, 3, 33, 49), (3, 3, 40, 58), (2, 3, 35, 66)):
        images = x(*shape)
        for name, value in native(images).items():
            torch.testing.assert_close(program(images)[name], value)


@pytest.mark.slow
def test_export_at_a_fixed_size():
    native, images = build(), x(2, 3, 33, 49)
    torch.testing.assert_close(torch.export.export(native, (images,)).module()(images), native(images))
