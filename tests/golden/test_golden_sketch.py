"""What a golden keeps of outputs and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.errors import WeightsError
from deeplabzoo.parity.sketch import Gradients, digest_of, grid_of, norm_errors, sketch_outputs


@pytest.mark.parametrize("shape", [(2, 5, 33, 49), (2, 21, 513, 513), (1, 1, 7, 900), (2, 4000, 65, 65), (1, 2, 1, 1)])
def test_the_grid_has_all_borders_and_is_small(shape):
    rows, columns = grid_of(shape)
    for places_, side in ((rows, shape[2]), (columns, shape[3])):
        assert places_[0] == 0
        assert places_[-1] == side - 1
        assert sorted(set(places_)) == list(places_)
        assert len(places_) <= min(24, side)
    values = shape[0] * shape[1] * len(rows) * len(columns)
    assert values <= max(4096, 4 * shape[0] * shape[1])


def test_digests_tell_dtype_shape_and_bits():
    a = np.arange(6.0)
    digests = {digest_of([one]) for one in (a, a.astype(np.float32), a.reshape(2, 3), -a, np.nextafter(a, 9))}
    assert len(digests) == 5
    assert digest_of([a.astype(">f8")]) == digest_of([a])
    assert digest_of([np.asfortranarray(a.reshape(2, 3))]) == digest_of([a.reshape(2, 3)])
    values = np.random.default_rng(0).standard_normal((1, 3, 4, 4))
    sketch = {
        n: sketch_outputs({"out": v}, {"out": ((0,), (0,))})["out"]
        for n, v in (("a", values), ("b", values * 2), ("c", values[:, ::-1]))
    }
    assert sketch["a"].labels == sketch["b"].labels != sketch["c"].labels


def test_norm_errors():
    sizes = {"a": 4, "b": 100, "zero": 9}
    truth = Gradients(2.0, np.array([2.0, 10.0, 1e-18]), np.array([1.0, 5.0, 1e-18]))

    def errors(loss=2.0, norms=(2.0, 10.0, 1e-18), sums=(1.0, 5.0, 1e-18)):
        return norm_errors(Gradients(loss, np.array(norms), np.array(sums)), truth, sizes)

    assert errors() == dict.fromkeys(("loss", "a", "b", "zero"), 0.0)
    assert errors(loss=2.2)["loss"] == pytest.approx(0.1)
    assert errors(norms=(2.0, 11.0, 1e-18))["b"] == pytest.approx(0.1)
    assert errors(sums=(1.0, 15.0, 1e-18))["b"] == pytest.approx(0.1)  # 10 over 10 * sqrt(100)
    assert errors(sums=(-1.0, 5.0, 1e-18))["a"] == pytest.approx(0.5)
    assert errors(norms=(2.0, 10.0, 5e-18))["zero"] < 1e-12  # rounding of what is zero
    assert errors(norms=(2.0, 10.0, 3.0))["zero"] == pytest.approx(1e4)
    assert errors(norms=(np.nan, 10.0, 0.0))["a"] == np.inf
    with pytest.raises(WeightsError, match="judges nothing"):
        norm_errors(truth, Gradients(2.0, np.zeros(3), np.zeros(3)), sizes)
