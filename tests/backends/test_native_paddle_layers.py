"""Layers of the Paddle backend, each for itself."""

from __future__ import annotations

import numpy as np
import op_cases
import pytest
from apart import in_paddle
from paddle_common import error

from deeplabzoo.backends import resolve
from deeplabzoo.core import ops
from deeplabzoo.core.interpolation import interpolation_matrix


def computed(op, values, parameters):
    """What the op's layer makes of the values, in float64."""
    import paddle

    paddle.set_default_dtype("float64")
    layer = resolve("paddle").module("ops").make_layer(op)
    for name, value in parameters.items():
        getattr(layer, name).set_value(value)
    return layer(*[paddle.to_tensor(value) for value in values]).numpy()


@in_paddle
def test_poolings_mean_what_their_ops_say():
    assert op_cases.judge(op_cases.pooling_cases(range(3, 14)), computed) > 2000


@in_paddle
def test_convolutions_mean_what_their_ops_say():
    assert op_cases.judge(op_cases.convolution_cases(range(3, 14)), computed) > 70


@in_paddle
def test_resizes_mean_what_their_ops_say():
    assert op_cases.judge(op_cases.resize_cases(range(3, 14)), computed) == 176


@in_paddle
def test_pointwise_layers_mean_what_their_ops_say():
    assert op_cases.judge(op_cases.pointwise_cases(), computed) == 20


@in_paddle
def test_the_input_has_no_layer():
    with pytest.raises(TypeError, match="no Paddle layer for op 'input'"):
        resolve("paddle").module("ops").make_layer(ops.Input(channels=3))


@in_paddle
def test_the_interpolation_matrix_is_that_of_the_core():
    matrix = resolve("paddle").module("ops").interpolation_matrix
    for source in (1, 2, 5, 33, 65):
        for target in (1, 2, 17, 129, 513):
            for align_corners in (False, True):
                expected = interpolation_matrix(source, target, align_corners=align_corners)
                np.testing.assert_allclose(matrix(source, target, align_corners).numpy(), expected, rtol=0, atol=2e-14)


@in_paddle
def test_dropout_scales_in_training_and_vanishes_in_evaluation():
    import paddle

    make_layer = resolve("paddle").module("ops").make_layer
    x = paddle.ones([4, 8, 16, 16])
    for channelwise in (False, True):
        layer = make_layer(ops.Dropout(rate=0.5, channelwise=channelwise))
        y = layer(x).numpy()
        assert set(np.unique(y)) == {0.0, 2.0}
        assert channelwise == all(len(np.unique(part)) == 1 for part in y.reshape(32, -1))
        layer.eval()
        assert np.array_equal(layer(x).numpy(), x.numpy())


@in_paddle
def test_running_statistics_take_the_unbiased_variance():
    import paddle

    make_layer = resolve("paddle").module("ops").make_layer
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 5)) * 2 + 1
    count = x.size / 3
    mean, biased = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    for momentum in (0.9, 0.1, 0.9997, 0.0):
        momentum = ops.float32_exact(momentum)
        epsilon = ops.float32_exact(1e-3)
        paddle.set_default_dtype("float64")
        layer = make_layer(ops.BatchNorm(channels=3, epsilon=epsilon, momentum=momentum))
        layer._mean.set_value(np.array([0.5, -1.0, 2.0]))
        layer._variance.set_value(np.array([0.3, 1.0, 7.0]))
        old_mean, old_variance = layer._mean.numpy().copy(), layer._variance.numpy().copy()
        given = paddle.to_tensor(x, stop_gradient=False)
        y = layer(given)
        expected = (x - mean[:, None, None]) / np.sqrt(biased + epsilon)[:, None, None]
        assert error(y.numpy(), expected) <= 1e-12
        new_mean = momentum * old_mean + (1 - momentum) * mean
        new_variance = momentum * old_variance + (1 - momentum) * biased * count / (count - 1)
        assert error(layer._mean.numpy(), new_mean) <= 1e-12
        assert error(layer._variance.numpy(), new_variance) <= 1e-12
        assert layer._variance.stop_gradient

        upstream = np.random.default_rng(1).standard_normal(x.shape)
        (y * paddle.to_tensor(upstream)).sum().backward()
        centred = upstream - upstream.mean(axis=(0, 2, 3), keepdims=True)
        centred = centred - expected * (upstream * expected).mean(axis=(0, 2, 3), keepdims=True)
        gradient = centred / np.sqrt(biased + epsilon)[:, None, None]
        assert error(given.grad.numpy(), gradient) <= 1e-12

        layer.eval()
        layer(given)
        assert error(layer._variance.numpy(), new_variance) <= 1e-12
        layer.train()
        layer._use_global_stats = True  # Paddle's own way to freeze them
        with pytest.warns(UserWarning, match="we now always track"):
            frozen = layer(given)
        assert error(layer._variance.numpy(), new_variance) <= 1e-12
        assert (
            error(frozen.numpy(), (x - new_mean[:, None, None]) / np.sqrt(new_variance + epsilon)[:, None, None])
            <= 1e-12
        )
