"""The referee's loss, gradients and training steps, against finite differences and by hand."""

from __future__ import annotations

import numpy as np
import pytest

import deeplabzoo as dz
from deeplabzoo.core import ops, reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backward import backward, batch_norm_of_batch
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import (
    EVALUATION,
    IGNORED,
    INPUT,
    Training,
    cross_entropy,
    dropout_mask,
    gradients,
    loss_weights,
    seeded_labels,
    train,
    trainable,
)
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import GraphError, SpecError, WeightsError


def small(arch: str = "v3", **options) -> Graph:
    spec = dz.spec(arch, backbone="mobilenet_v3_large", rates=(1, 2, 3), num_classes=4, **options)
    return build_graph(spec.narrowed(16))


def question(graph: Graph, seed: int = 0, batch: int = 3):
    weights = seeded_weights(graph, 1, statistics="lively", dtype="float64")
    x = np.random.default_rng(seed).standard_normal((batch, 3, 33, 41))
    return weights, x, seeded_labels(graph, batch, 33, 41, seed)


@pytest.mark.parametrize(
    "training",
    [EVALUATION, Training(dropout="seeded"), Training(batch_norm="frozen", dropout="seeded")],
    ids=["evaluation", "batch", "frozen"],
)
@pytest.mark.parametrize("arch", ["v3", "v3plus"])
def test_gradients_are_slopes_of_the_loss(arch, training):
    """Along a random direction of every tensor at once, and of the image."""
    graph = small(arch, aux={"channels": 16} if arch == "v3" else None)
    weights, x, labels = question(graph)
    loss, found, _ = gradients(graph, weights, x, labels, training)
    assert list(found) == [*filter(trainable, graph.parameters()), INPUT]
    random = np.random.default_rng(5)
    for names in ([name for name in found if name != INPUT], [INPUT]):
        direction = {name: random.standard_normal(found[name].shape) for name in names}
        expected = sum(float((found[name] * direction[name]).sum()) for name in names)
        step, ends = 1e-9, []  # few kinks lie that near
        for sign in (1, -1):
            moved = {n: weights[n] + sign * step * direction[n] for n in names if n != INPUT}
            image = x + sign * step * direction[INPUT] if INPUT in names else x
            ends.append(gradients(graph, {**weights, **moved}, image, labels, training)[0])
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-3)
        assert abs(expected) > 1e-6
    assert loss > 0


@pytest.mark.parametrize("op", [ops.MaxPool(kernel=3, stride=2, padding=(1, 1, 1, 1), ceil_mode=True),
                                ops.AvgPool(kernel=3, stride=2, padding=(0, 1, 1, 0), ceil_mode=True),
                                ops.AvgPool(kernel=3, stride=2, padding=(1, 1, 1, 1), count_padding=True),
                                ops.MaxPool(kernel=3, stride=2, padding="same")])  # fmt: skip
def test_poolings_by_finite_differences(op):
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 7))
    made = reference.evaluate(op, [x], {})
    weight = np.random.default_rng(1).standard_normal(made.shape)
    ((found,), own) = backward(op, [x], made, weight, {})
    assert own == {}
    for place in np.ndindex(x.shape):
        near = x.copy()
        near[place] += 1e-6
        slope = ((reference.evaluate(op, [near], {}) - made) * weight).sum() / 1e-6
        assert found[place] == pytest.approx(slope, abs=1e-7)


def test_the_larger_of_equals_takes_the_gradient_once():
    op = ops.MaxPool(kernel=2, stride=2)
    x = np.ones((1, 1, 2, 2))
    ((found,), _) = backward(op, [x], np.ones((1, 1, 1, 1)), np.full((1, 1, 1, 1), 3.0), {})
    assert sorted(found.reshape(-1)) == [0, 0, 0, 3]


def test_no_gradient_of_labels():
    with pytest.raises(GraphError, match="argmax has no gradient"):
        backward(ops.Argmax(), [np.ones((1, 2, 1, 1))], np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), {})
    for values in ("labels", "probabilities"):
        with pytest.raises(GraphError, match=r"has no logits for a loss: use output.values = 'logits'"):
            loss_weights(small(output={"values": values}), EVALUATION)


def test_cross_entropy_by_hand():
    logits = np.zeros((1, 2, 1, 3))
    logits[0, 1, 0, 0] = np.log(3)  # probabilities 1/4 and 3/4
    labels = np.array([[[1, 0, IGNORED]]])
    loss, slope = cross_entropy(logits, labels)
    assert loss == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)
    np.testing.assert_allclose(slope[0, :, 0].T, [[0.125, -0.125], [-0.25, 0.25], [0, 0]], atol=1e-16)
    loss, _ = cross_entropy(np.array([[[[0.0]], [[1000.0]]]]), np.array([[[0]]]))
    assert loss == 1000


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((1, 2, 3), int), "do not fit"),
        (np.full((1, 1, 3), 2), "expected 0..1, or -1"),
        (np.full((1, 1, 3), IGNORED), "every pixel is ignored"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(GraphError, match=message):
        cross_entropy(np.zeros((1, 2, 1, 3)), labels)


def test_a_step_by_hand():
    """Momentum and decay as PyTorch has them; running statistics with the unbiased variance."""
    graph = small()
    weights, x, labels = question(graph)
    training = Training(steps=2, learning_rate=0.5, momentum=0.5, weight_decay=0.25)
    (first, once), (second, twice) = train(graph, weights, x, labels, training)
    name = "classifier.conv.weight"
    loss, found, moved = gradients(graph, weights, x, labels, training)
    assert first == loss
    push = found[name] + 0.25 * weights[name]
    np.testing.assert_allclose(once[name], weights[name] - 0.5 * push, rtol=1e-14)
    later, again, _ = gradients(graph, once, x, labels, training, step=1)
    assert second == later
    push = 0.5 * push + again[name] + 0.25 * once[name]
    np.testing.assert_allclose(twice[name], once[name] - 0.5 * push, rtol=1e-14)
    assert set(moved) == {n for n in weights if not trainable(n)}
    assert all(np.array_equal(once[n], moved[n]) for n in moved)


def test_statistics_of_a_batch():
    op = ops.BatchNorm(channels=2, epsilon=1e-5, momentum=0.75)
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 5))
    own = {name: np.full(2, value) for name, value in zip(op.parameters(), (2.0, 1.0, 4.0, 8.0), strict=True)}
    made, moved = batch_norm_of_batch(op, x, own)
    np.testing.assert_allclose(made.mean(axis=(0, 2, 3)), 1, atol=1e-12)
    np.testing.assert_allclose(made.std(axis=(0, 2, 3)), 2, rtol=1e-4)
    np.testing.assert_allclose(moved["running_var"], 6 + 0.25 * x.var(axis=(0, 2, 3), ddof=1))
    np.testing.assert_allclose(moved["running_mean"], 3 + 0.25 * x.mean(axis=(0, 2, 3)))
    with pytest.raises(GraphError, match="received one value a channel"):
        batch_norm_of_batch(op, x[:1, :, :1, :1], own)


def test_dropout_masks():
    op = ops.Dropout(rate=0.25)
    training = Training(seed=3)
    mask = dropout_mask("a.dropout", op, (2, 8, 30, 30), training, 0)
    assert set(np.unique(mask)) == {0, 1 / 0.75}
    assert mask.mean() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(mask, dropout_mask("a.dropout", op, (2, 8, 30, 30), training, 0))
    for other in (("b.dropout", training, 0), ("a.dropout", training, 1), ("a.dropout", Training(seed=4), 0)):
        name, settings, step = other
        assert not np.array_equal(mask, dropout_mask(name, op, (2, 8, 30, 30), settings, step))
    whole = dropout_mask("a.dropout", ops.Dropout(rate=0.25, channelwise=True), (2, 8, 30, 30), training, 0)
    assert whole.shape == (2, 8, 1, 1)
    assert not dropout_mask("a.dropout", ops.Dropout(rate=1), (1, 1, 2, 2), training, 0).any()


def test_labels_are_seeded_and_some_ignored():
    graph = small()
    labels = seeded_labels(graph, 2, 65, 81, 0)
    assert labels.shape == (2, 65, 81)
    assert set(np.unique(labels)) == {IGNORED, 0, 1, 2, 3}
    assert (labels == IGNORED).mean() == pytest.approx(0.1, abs=0.02)
    assert not np.array_equal(labels, seeded_labels(graph, 2, 65, 81, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm": "frosen"}, "did you mean 'frozen'"),
        ({"dropout": "on"}, "expected one of off, seeded"),
        ({"steps": 0}, "steps = 0: expected a whole number of at least 1"),
        ({"learning_rate": -1}, "learning_rate = -1: expected a finite number"),
        ({"momentum": float("nan")}, "momentum = nan"),
        ({"weight_decay": float("inf")}, "weight_decay = inf"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(SpecError, match=message):
        Training(**options)


def test_settings_are_float32_numbers():
    training = Training(learning_rate=0.1, momentum=0.9)
    assert training.learning_rate == float(np.float32(0.1))
    assert Training(**training.to_dict()) == training


def test_weights_that_do_not_fit():
    graph = small()
    weights, x, labels = question(graph)
    with pytest.raises(WeightsError, match="missing"):
        gradients(graph, {}, x, labels)
    with pytest.raises(GraphError, match="do not fit logits"):
        gradients(graph, weights, x, labels[:, 1:])
