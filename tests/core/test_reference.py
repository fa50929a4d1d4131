"""The referee's ops against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.core import ops
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.core.ops import float32_exact, same_padding
from deeplabzoo.core.reference import evaluate, forward
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import check_weights, seeded_weights
from deeplabzoo.errors import GraphError, WeightsError


def array(*values):
    return np.array(values, float)[None, None]


def conv(x, weight, **options):
    weight = np.asarray(weight, float)
    op = ops.Conv2d(in_channels=x.shape[1], out_channels=weight.shape[0], kernel=weight.shape[-1], **options)
    parameters = {"weight": weight}
    if op.bias:
        parameters["bias"] = np.arange(1.0, weight.shape[0] + 1)
    y = evaluate(op, [x], parameters)
    assert y.shape == op.infer([x.shape])
    return y


COUNT = np.arange(1.0, 10).reshape(1, 1, 3, 3)
"""1 to 9; also a kernel, of which no two taps are alike."""


def test_convolution_is_a_correlation():
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1
    # A point seen through a correlation comes out as the kernel turned by 180 degrees.
    np.testing.assert_array_equal(conv(x, COUNT, padding=(1, 1, 1, 1)), COUNT[:, :, ::-1, ::-1])
    assert conv(COUNT, COUNT) == sum(n * n for n in range(1, 10))


def test_padding_has_four_sides():
    x = array([1, 2], [3, 4])
    one = [[[[1, 10], [100, 1000]]]]
    np.testing.assert_array_equal(conv(x, one)[0, 0], [[4321]])
    np.testing.assert_array_equal(conv(x, one, padding=(1, 0, 0, 0))[0, 0], [[2100], [4321]])
    np.testing.assert_array_equal(conv(x, one, padding=(0, 1, 0, 0))[0, 0], [[4321], [43]])
    np.testing.assert_array_equal(conv(x, one, padding=(0, 0, 1, 0))[0, 0], [[3010, 4321]])
    np.testing.assert_array_equal(conv(x, one, padding=(0, 0, 0, 1))[0, 0], [[4321, 402]])


def test_dilation_and_stride():
    x = np.arange(25.0).reshape(1, 1, 5, 5)
    np.testing.assert_array_equal(conv(x, COUNT, dilation=2)[0, 0], [[np.sum(COUNT * x[:, :, ::2, ::2])]])
    np.testing.assert_array_equal(conv(x, [[[[1.0]]]], stride=2)[0, 0], x[0, 0, ::2, ::2])
    both = conv(x, COUNT, dilation=2, stride=2, padding=(2, 2, 2, 2))
    assert both.shape == (1, 1, 3, 3)
    assert both[0, 0, 1, 1] == np.sum(COUNT * x[:, :, ::2, ::2])
    corner = x[0, 0, :3:2, :3:2] * COUNT[0, 0, 1:, 1:]
    assert both[0, 0, 0, 0] == corner.sum()


def test_groups_and_bias():
    x = np.arange(1.0, 5).reshape(1, 4, 1, 1)
    grouped = conv(x, [[[[1]], [[10]]], [[[100]], [[1000]]]], groups=2)
    np.testing.assert_array_equal(grouped[0, :, 0, 0], [21, 4300])
    depthwise = conv(x, np.array([1, 10, 100, 1000.0]).reshape(4, 1, 1, 1), groups=4, bias=True)
    np.testing.assert_array_equal(depthwise[0, :, 0, 0], [1 + 1, 20 + 2, 300 + 3, 4000 + 4])
    multiplied = conv(x[:, :2], np.array([1, 10, 100, 1000.0]).reshape(4, 1, 1, 1), groups=2)
    np.testing.assert_array_equal(multiplied[0, :, 0, 0], [1, 10, 200, 2000])


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "sides"),
    [
        (4, 3, 2, 1, (0, 1)),  # even: nothing before, one after
        (5, 3, 2, 1, (1, 1)),
        (4, 3, 1, 1, (1, 1)),
        (9, 3, 1, 4, (4, 4)),
        (224, 7, 2, 1, (2, 3)),
        (5, 1, 2, 1, (0, 0)),
        (2, 3, 4, 1, (0, 1)),
        (7, 3, 2, 2, (2, 2)),
    ],
)
def test_same_padding(size, kernel, stride, dilation, sides):
    assert same_padding(size, kernel, stride, dilation) == sides
    op = ops.Conv2d(in_channels=1, out_channels=1, kernel=kernel, stride=stride, dilation=dilation, padding="same")
    assert op.infer([(1, 1, size, size)])[2] == -(-size // stride)


def test_same_convolution():
    x = array([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16])
    y = conv(x, COUNT, stride=2, padding="same")
    np.testing.assert_array_equal(y[0, 0, 0, 0], np.sum(x[0, 0, :3, :3] * COUNT))
    np.testing.assert_array_equal(y[0, 0, 1, 1], np.sum(x[0, 0, 2:, 2:] * COUNT[0, 0, :2, :2]))
    np.testing.assert_array_equal(y, conv(x, COUNT, stride=2, padding=(0, 1, 0, 1)))
    assert not np.array_equal(y, conv(x, COUNT, stride=2, padding=(1, 1, 1, 1)))


def test_batch_norm():
    op = ops.BatchNorm(channels=2, epsilon=0.75, momentum=0.9)
    x = np.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    names = ("weight", "bias", "running_mean", "running_var")
    values = ([4.0, 6.0], [0.5, -1.0], [3.0, 1.0], [0.25, 8.25])
    y = evaluate(op, [x], {n: np.array(v) for n, v in zip(names, values, strict=True)})
    np.testing.assert_allclose(y[0, :, 0, 0], [4 * (1 - 3) / 1 + 0.5, 6 * (2 - 1) / 3 - 1])


def test_epsilon_and_momentum_are_float32():
    builder = GraphBuilder()
    x = builder.batch_norm("bn", builder.input(3), epsilon=1e-3, momentum=0.9)
    op = builder.finish({"out": x}).by_name["bn"].op
    assert op.epsilon == float(np.float32(1e-3)) != 1e-3
    assert op.momentum == float32_exact(0.9) != 0.9


def test_activations():
    x = np.array([-1.0, 0, 3, 6, 7.5]).reshape(1, 5, 1, 1)

    def apply(function):
        return evaluate(ops.Activation(function=function), [x], {})[0, :, 0, 0]

    np.testing.assert_array_equal(apply("relu"), [0, 0, 3, 6, 7.5])
    np.testing.assert_array_equal(apply("relu6"), [0, 0, 3, 6, 6])
    np.testing.assert_allclose(apply("softmax"), np.exp(x[0, :, 0, 0]) / np.exp(x).sum())
    np.testing.assert_allclose(apply("sigmoid"), 1 / (1 + np.exp([1, 0, -3, -6, -7.5])))
    huge = np.array([1e4, 0.0]).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(evaluate(ops.Activation(function="softmax"), [huge], {})[0, :, 0, 0], [1, 0])


def test_hard_gates():
    """MobileNetV3: relu6(x + 3) / 6, and x times that."""
    x = np.array([-4.0, -3, -1, 0, 1, 3, 6]).reshape(1, 7, 1, 1)
    for function, expected in {
        "hard_sigmoid": [0, 0, 1 / 3, 1 / 2, 2 / 3, 1, 1],
        "hard_swish": [0, 0, -1 / 3, 0, 2 / 3, 3, 6],
    }.items():
        made = evaluate(ops.Activation(function=function), [x], {})[0, :, 0, 0]
        np.testing.assert_allclose(made, expected, rtol=1e-15)
    three_to_one = np.log([3.0, 1, 1 / 3]).reshape(1, 3, 1, 1)
    made = evaluate(ops.Activation(function="sigmoid"), [three_to_one], {})[0, :, 0, 0]
    np.testing.assert_allclose(made, [3 / 4, 1 / 2, 1 / 4], rtol=1e-15)


def pool(x, **options):
    op = ops.MaxPool(kernel=3, stride=2, **options)
    y = evaluate(op, [x], {})
    assert y.shape == op.infer([x.shape])
    return y


def test_max_pool():
    """Layouts.md, section 11: 3x3, stride 2, padding 1."""
    ones = (1, 1, 1, 1)
    x = np.arange(64.0).reshape(1, 1, 8, 8)
    floor, ceil = pool(x, padding=ones), pool(x, padding=ones, ceil_mode=True)
    assert floor.shape[2:] == (4, 4)
    assert ceil.shape[2:] == (5, 5)
    np.testing.assert_array_equal(ceil[..., :4, :4], floor)
    assert floor[0, 0, 0, 0] == 9
    assert ceil[0, 0, 4, 4] == 63
    nine = np.arange(81.0).reshape(1, 1, 9, 9)
    np.testing.assert_array_equal(pool(nine, padding=ones, ceil_mode=True), pool(nine, padding=ones))
    assert pool(nine, padding=ones).shape[2:] == (5, 5)
    np.testing.assert_array_equal(
        pool(np.full((1, 1, 8, 8), -5.0), padding=ones, ceil_mode=True), np.full((1, 1, 5, 5), -5)
    )
    same = pool(x, padding="same")  # 0 before, 1 after
    assert same[0, 0, 0, 0] == 18
    assert same.shape[2:] == (4, 4)
    # A window that would start in the padding after the input is left out: 2 wide, stride 2, 3 -> 2, not 3.
    op = ops.MaxPool(kernel=2, stride=2, padding=(1, 1, 1, 1), ceil_mode=True)
    assert op.infer([(1, 1, 3, 3)])[2:] == (2, 2)


def mean(x, kernel, stride, **options):
    op = ops.AvgPool(kernel=kernel, stride=stride, **options)
    y = evaluate(op, [x], {})
    assert y.shape == op.infer([x.shape])
    return y[0, 0]


def test_avg_pool_at_a_border():
    """Layouts.md, section 11: Caffe counts its padding, Paddle does not."""
    sides, ones = (1, 1, 1, 1), np.ones((1, 1, 3, 3))
    caffe = mean(ones, 3, 1, padding=sides, count_padding=True)
    np.testing.assert_allclose(caffe, np.array([[4, 6, 4], [6, 9, 6], [4, 6, 4]]) / 9)
    np.testing.assert_array_equal(mean(ones, 3, 1, padding=sides), ones[0, 0])
    sums = np.array([[1 + 2 + 4 + 5, 2 + 3 + 5 + 6], [4 + 5 + 7 + 8, 5 + 6 + 8 + 9]])
    np.testing.assert_array_equal(mean(COUNT, 3, 2, padding=sides), sums / 4)
    np.testing.assert_array_equal(mean(COUNT, 3, 2, padding=sides, count_padding=True), sums / 9)
    # Four sides of their own: one row above, two columns to the right.
    uneven = {"padding": (1, 0, 0, 2)}
    np.testing.assert_array_equal(mean(COUNT, 3, 1, count_padding=True, **uneven) * 9, [[21, 16, 9], [45, 33, 18]])
    np.testing.assert_array_equal(mean(COUNT, 3, 1, **uneven), [[21 / 6, 16 / 4, 9 / 2], [45 / 9, 33 / 6, 18 / 3]])


def test_avg_pool_rounded_up():
    x = np.arange(25.0).reshape(1, 1, 5, 5)
    np.testing.assert_array_equal(mean(x, 2, 2), [[3, 5], [13, 15]])
    # What hangs over is no point: the edges are means of two, the corner is the last point itself.
    for counted in (False, True):
        made = mean(x, 2, 2, ceil_mode=True, count_padding=counted)
        np.testing.assert_array_equal(made, [[3, 5, 6.5], [13, 15, 16.5], [20.5, 22.5, 24]])
    # 4x4, 3 wide, stride 2, padding 1: the last windows see one point, one of padding, and one that hangs over.
    x, sides = np.arange(1.0, 17).reshape(1, 1, 4, 4), (1, 1, 1, 1)
    real = mean(x, 3, 2, padding=sides, ceil_mode=True)
    counted = mean(x, 3, 2, padding=sides, ceil_mode=True, count_padding=True)
    assert real.shape == counted.shape == (3, 3)
    assert (real[2, 2], counted[2, 2]) == (16, 16 / 4)
    assert (real[2, 0], counted[2, 0]) == ((13 + 14) / 2, (13 + 14) / 6)
    assert (real[0, 0], counted[0, 0]) == ((1 + 2 + 5 + 6) / 4, (1 + 2 + 5 + 6) / 9)
    np.testing.assert_array_equal(mean(x, 3, 2, padding=sides), real[:2, :2])
    # A window that would start in the padding after the input is left out, as in `test_max_pool`.
    assert mean(COUNT, 2, 2, padding=sides, ceil_mode=True).shape == (2, 2)
    with pytest.raises(GraphError, match="3x3 is too small for a window of 5x5"):
        mean(COUNT, 5, 1)


def resize(values, size, align_corners):
    x = np.array(values, float).reshape(1, 1, 1, -1)
    return evaluate(ops.Resize(align_corners=align_corners), [x, np.zeros((1, 1, 1, size))], {})[0, 0, 0]


def test_resize():
    """Layouts.md, section 11."""
    np.testing.assert_allclose(resize(range(4), 8, False), [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    np.testing.assert_allclose(resize(range(4), 8, True), np.arange(8) * 3 / 7)
    np.testing.assert_allclose(resize(range(4), 8, True)[:3], [0, 0.4286, 0.8571], atol=5e-5)
    np.testing.assert_allclose(resize(range(4), 2, False), [0.5, 2.5])
    np.testing.assert_allclose(resize(range(4), 1, False), [1.5])
    np.testing.assert_allclose(resize(range(4), 1, True), [0])
    np.testing.assert_array_equal(resize([7], 5, False), [7] * 5)
    np.testing.assert_array_equal(resize([7], 5, True), [7] * 5)
    np.testing.assert_array_equal(resize(range(4), 4, False), range(4))
    square = evaluate(ops.Resize(align_corners=True), [array([0, 1], [10, 11]), np.zeros((1, 1, 3, 5))], {})
    np.testing.assert_allclose(
        square[0, 0], [[0, 0.25, 0.5, 0.75, 1], [5, 5.25, 5.5, 5.75, 6], [10, 10.25, 10.5, 10.75, 11]]
    )


@pytest.mark.parametrize("align_corners", [True, False])
def test_interpolation_matrix_rows_sum_to_one(align_corners):
    for source in (1, 2, 5, 33):
        for target in (1, 2, 7, 33, 64):
            matrix = interpolation_matrix(source, target, align_corners=align_corners)
            assert matrix.shape == (target, source)
            np.testing.assert_allclose(matrix.sum(axis=1), 1)
            assert (matrix >= 0).all()
    for source, target in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            interpolation_matrix(source, target, align_corners=align_corners)


def test_the_rest():
    x = np.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(evaluate(ops.GlobalAvgPool(), [x], {})[0, :, 0, 0], [1.5, 5.5])
    np.testing.assert_array_equal(evaluate(ops.Add(), [x, x], {}), 2 * x)
    np.testing.assert_array_equal(evaluate(ops.Add(), [x, 10 * x, 100 * x, 1000 * x], {}), 1111 * x)
    # From the first to the last: of these only the last is left; from the last, nothing.
    assert evaluate(ops.Add(), [np.full((1, 1, 1, 1), n) for n in (1e16, 1.0, -1e16, 0.5)], {}).item() == 0.5
    gate = np.array([10.0, 100.0]).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(
        evaluate(ops.Multiply(), [x, gate], {})[0], [[[0, 10], [20, 30]], [[400, 500], [600, 700]]]
    )
    np.testing.assert_array_equal(evaluate(ops.Concat(), [x, -x], {})[0, 2], -x[0, 0])
    np.testing.assert_array_equal(evaluate(ops.Dropout(rate=0.5), [x], {}), x)
    tie = np.array([1.0, 3, 3, 0]).reshape(1, 4, 1, 1)
    labels = evaluate(ops.Argmax(), [tie], {})
    assert labels.shape == (1, 1, 1, 1)
    assert labels[0, 0, 0, 0] == 1
    for op, shapes in ((ops.Add(), [(1, 2, 3, 3), (1, 2, 3, 4)]), (ops.Concat(), [(1, 2, 3, 3), (1, 2, 4, 3)])):
        with pytest.raises(GraphError, match="equal"):
            op.infer(shapes)
    for gate in ((1, 3, 1, 1), (1, 2, 3, 3), (2, 2, 1, 1)):
        with pytest.raises(GraphError, match=r"a gate of shape .* does not fit \(1, 2, 3, 3\)"):
            ops.Multiply().infer([(1, 2, 3, 3), gate])


def test_wrong_weights_and_images():
    graph = build_graph(make_spec("v3", backbone={"name": "mobilenet_v2", "width": 0.35}, aspp={"channels": 8}))
    weights = seeded_weights(graph)
    with pytest.raises(GraphError, match="reads 3 channels, received 4"):
        forward(graph, weights, np.zeros((1, 4, 33, 33)))
    first = "aspp.branch0.bn.bias"
    wrong = {**weights, "zz": np.zeros(1), "extra": np.zeros(2), "classifier.conv.bias": np.zeros(3)}
    del wrong["backbone.stem.conv.weight"], wrong[first]
    with pytest.raises(WeightsError) as caught:
        check_weights(graph, wrong)
    message = str(caught.value)
    assert f"first {first}" in message
    assert f"2 missing ({first}, backbone.stem.conv.weight)" in message
    assert "1 of the wrong shape (classifier.conv.bias (3,), expected (21,))" in message
    assert "2 unexpected (extra, zz)" in message
    check_weights(graph, {**weights, "backbone.stem.bn.num_batches_tracked": np.array(3)})
    with pytest.raises(WeightsError, match="1 unexpected"):
        check_weights(graph, {**weights, "backbone.stem.num_batches_tracked": np.array(3)})


def test_seeded_weights():
    graph = build_graph(make_spec("v3", backbone={"name": "mobilenet_v2", "width": 0.35}, aspp={"channels": 8}))
    fresh, lively = seeded_weights(graph), seeded_weights(graph, statistics="lively")
    assert list(fresh) == list(graph.parameters())
    assert all(np.array_equal(a, b) for a, b in zip(fresh.values(), seeded_weights(graph).values(), strict=True))
    name = "backbone.stage3.block1.project.conv.weight"
    assert not np.array_equal(fresh[name], seeded_weights(graph, 1)[name])
    assert not np.array_equal(fresh["aspp.branch0.conv.weight"], fresh["aspp.image_pooling.conv.weight"])
    assert (fresh["backbone.stem.bn.running_var"] == 1).all()
    for suffix, low, high in (("weight", 0.5, 1), ("running_var", 0.5, 1.5)):
        values = lively[f"backbone.stem.bn.{suffix}"]
        assert low <= values.min() < values.max() < high
    assert np.abs(lively["backbone.stem.bn.running_mean"]).max() > 0
    with pytest.raises(WeightsError, match="seed -1"):
        seeded_weights(graph, -1)
