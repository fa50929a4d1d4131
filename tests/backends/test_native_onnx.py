"""The ONNX backend: its nodes mean what the ops say, in onnxruntime and in the reference, and files go there and back."""

# ruff: noqa: E402 - nothing of the backend can be imported where its packages are missing

from __future__ import annotations

import itertools

import numpy as np
import op_cases
import pytest
from helpers import digests, image, lively, small_spec

import deeplabzoo as dz
from deeplabzoo.core import reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, OutputError
from deeplabzoo.parity.compare import BOUNDS, error
from deeplabzoo.weights_converter.convert import convert, read_source, write_model

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deeplabzoo.backends.onnx import run
from deeplabzoo.backends.onnx.build import build, graph_of
from deeplabzoo.backends.onnx.ops import OPSET, make_layer
from deeplabzoo.backends.onnx.weights import load_weights, read_weights

ALL = {
    "pooling": lambda: op_cases.pooling_cases((5, 8)),
    "convolution": lambda: op_cases.convolution_cases((9, 12)),
    "pointwise": op_cases.pointwise_cases,
    "resize": lambda: op_cases.resize_cases((6, 9)),
}


def one_op(op, values, parameters, dtype):
    """A checked model of one op, and what to feed it."""
    names = [f"x{i}" for i in range(len(values))]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = onnx.TensorProto.INT64 if op.kind == "argmax" else kind
    graph = helper.make_graph(
        make_layer(op, name="y", inputs=names, dtype=dtype).nodes,
        "op",
        [helper.make_tensor_value_info(name, kind, [None] * 4) for name in names],
        [helper.make_tensor_value_info("y", made, [None] * 4)],
        [numpy_helper.from_array(a.astype(dtype), f"y.{suffix}") for suffix, a in parameters.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model, {name: value.astype(dtype) for name, value in zip(names, values, strict=True)}


def in_reference(op, values, parameters):
    model, fed = one_op(op, values, parameters, "float64")
    return ReferenceEvaluator(model).run(None, fed)[0]


@pytest.mark.parametrize("kind", ALL)
def test_every_case_in_the_reference(kind):
    assert op_cases.judge(ALL[kind](), in_reference) > 15


@pytest.mark.parametrize("kind", ALL)
def test_every_case_in_onnxruntime(kind):
    for op, values, parameters in ALL[kind]():
        model, fed = one_op(op, values, parameters, "float32")
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (made,) = session.run(None, fed)
        truth = reference.evaluate(op, values, parameters)
        title = f"{op} of {', '.join(str(value.shape) for value in values)}"
        assert made.shape == truth.shape, title
        assert error(made, truth) <= 5e-6, title


def test_an_epsilon_that_no_float32_holds():
    """The attribute is a float32: without the rest a float64 network would be 1e-11 off and more."""
    builder = GraphBuilder()
    x = builder.batch_norm("bn", builder.input(2), epsilon=1e-3, momentum=0.9, exact=True)
    graph = builder.finish({"out": x})
    weights = seeded_weights(graph, 0, statistics="lively", dtype="float64")
    weights["bn.running_var"] = np.array([1e-4, 2e-4])
    model = build(graph, dtype="float64")
    load_weights(model, weights)
    x = image(2, 2, 5, 7)
    assert error(run.forward(model, x)["out"], reference.forward(graph, weights, x)["out"]) <= 1e-15


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("v1", {}),
        ("v2", {}),
        ("v3", {"backbone": "resnet50", "output_stride": 8}),
        ("v3plus", {"backbone": "xception65"}),
        ("v3_mobilenet_v3_large.torchvision", {}),
        ("v3_mobilenet_v2.tf", {}),
    ],
)
def test_architectures(arch, options):
    """Checked with all shapes inferred, at sizes and batches that the model never saw, in both precisions."""
    spec = dz.spec(arch, **options).narrowed(16)
    graph = build_graph(spec)
    weights = seeded_weights(graph, 3, statistics="lively")
    small = run.prepare(_filled(graph, weights, "float32"))
    for size, batch in (((65, 97), 1), ((96, 64), 3)):
        x = image(batch, 3, *size)
        truth, made = reference.forward(graph, weights, x), run.forward(small, x)
        assert list(made) == list(truth)
        for name, values in truth.items():
            assert error(made[name], values) <= BOUNDS["float32"]
    x = image(2, 3, 33, 41)
    truth, made = reference.forward(graph, weights, x), run.forward(_filled(graph, weights, "float64"), x)
    for name, values in truth.items():
        assert error(made[name], values) <= BOUNDS["float64"]


def _filled(graph, weights, dtype):
    model = build(graph, dtype=dtype)
    load_weights(model, weights)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not any(node.domain for node in model.graph.node)
    return model


def test_a_wrong_weight_is_seen():
    graph = build_graph(small_spec())
    weights = seeded_weights(graph, 3, statistics="lively")
    x = image(1, 3, 65, 65)
    truth = reference.forward(graph, weights, x)["out"]
    name = next(n for n, a in weights.items() if a.ndim == 4 and a.shape[2] == 3)
    turned = {**weights, name: weights[name].transpose(0, 1, 3, 2)}
    assert error(run.forward(_filled(graph, turned, "float32"), x)["out"], truth) > 1e-3


def test_native_model():
    """A `ModelProto` whose initialisers are the parameters, and which knows its graph and spec."""
    spec = small_spec()
    model = dz.build(spec, backend="onnx", seed=5)
    graph = build_graph(spec)
    assert isinstance(model, onnx.ModelProto)
    assert graph_of(model) == graph
    assert {t.name for t in model.graph.initializer} == set(graph.parameters())
    assert digests(read_weights(model)) == digests(seeded_weights(graph, 5))
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 3, "H", "W"]
    x = image(1, 3, 65, 65)
    assert error(dz.run(model, x), reference.forward(graph, seeded_weights(graph, 5), x)["out"]) <= BOUNDS["float32"]


def test_files_there_and_back(tmp_path):
    """Bit for bit, without a file beside it; and what any ONNX runtime makes of it is the network."""
    model = lively(small_spec())
    write_model(model, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    read = read_source(tmp_path / "m.onnx")
    assert (read.format, read.layout) == ("onnx", "deeplabzoo")
    assert read.model.spec == model.spec
    assert digests(read.model.weights) == digests(model.weights)
    convert(tmp_path / "m.onnx", tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "again.onnx")
    first, again = (onnx.load(tmp_path / name) for name in ("m.onnx", "again.onnx"))
    assert again.graph.SerializeToString() == first.graph.SerializeToString()  # only the record of the source differs
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for size in ((65, 65), (96, 113)):
        x = image(2, 3, *size)
        truth = reference.forward(model.graph, model.weights, x)["out"]
        assert error(session.run(["out"], {"input": x.astype(np.float32)})[0], truth) <= BOUNDS["float32"]


def test_half_precision(tmp_path):
    graph = build_graph(small_spec())
    weights = seeded_weights(graph, 3, statistics="lively")
    x = image(1, 3, 65, 65)
    truth = reference.forward(graph, weights, x)["out"]
    assert 1e-5 < error(run.forward(_filled(graph, weights, "float16"), x)["out"], truth) < 2e-2


def test_what_it_can_not_do(tmp_path, monkeypatch):
    with pytest.raises(BackendError, match="backend onnx in bfloat16: expected one of float64, float32, float16"):
        dz.build(small_spec(), backend="onnx", dtype="bfloat16")
    stranger = helper.make_model(helper.make_graph([], "empty", [], []))
    with pytest.raises(BackendError, match="holds no graph of ours"):
        load_weights(stranger, {})
    with pytest.raises(BackendError, match="is no model built by this package"):
        dz.run(stranger, image(1, 3, 65, 65))
    monkeypatch.setattr("deeplabzoo.whole_models._ONNX_LIMIT", 1000)
    with pytest.raises(OutputError, match="the format ends at 2 GB"):
        write_model(lively(small_spec()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_labels_and_sizes_of_outputs():
    """Where the network ends in labels they are whole numbers; an output of another size has sizes of its own."""
    for labels, output in itertools.product((False, True), ("out", "aux")):
        model = build(op_cases.every_op(labels=labels))
        made = {value.name: value.type.tensor_type for value in model.graph.output}[output]
        plane = [dim.dim_param for dim in made.shape.dim[2:]]
        assert plane == (["H", "W"] if output == "out" else ["aux_H", "aux_W"])
        assert (made.elem_type == onnx.TensorProto.INT64) == (labels and output == "out")
