"""`.keras`: written by Keras in a process of its own, read without it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import digests, image, lively, python, small_spec

from deeplabzoo.errors import BackendError, LayoutError, OutputError
from deeplabzoo.weights_converter.convert import convert, read_source, write_model

LOADS = """
import json, sys
import numpy as np
import deeplabzoo, keras
from deeplabzoo.backends.keras import build
model = keras.models.load_model(sys.argv[1])
x = np.load(sys.argv[2]).astype(np.float32).transpose(0, 2, 3, 1)
np.save(sys.argv[3], np.asarray(model(x)).transpose(0, 3, 1, 2))
"""


@pytest.fixture(scope="module")
def spec():
    return small_spec("v3", output_stride=16, rates=(1, 2, 3))


@pytest.fixture(scope="module")
def archive(spec, tmp_path_factory, requested):
    if "keras" not in requested:
        pytest.skip("keras is not in DEEPLABZOO_TEST_BACKENDS")
    path = tmp_path_factory.mktemp("archive") / "model.keras"
    done = convert(dict(lively(spec).weights), path, spec=spec)
    assert (done.format, done.path) == ("keras", path)
    return path


def test_read_without_keras(archive, spec):
    read = read_source(archive)
    assert (read.format, read.layout, read.model.spec) == ("keras", "deeplabzoo", spec)
    assert digests(read.model.weights) == digests(lively(spec).weights)


def test_keras_loads_it(archive, spec, tmp_path):
    import deeplabzoo

    x = image(1, 3, 65, 49)
    np.save(tmp_path / "x.npy", x)
    python(LOADS, archive, tmp_path / "x.npy", tmp_path / "y.npy")
    truth = deeplabzoo.run(lively(spec), x, backend="keras", dtype="float32")
    assert np.abs(np.load(tmp_path / "y.npy") - truth).max() <= 1e-5 * np.abs(truth).max()


def test_its_own_graph_is_believed(archive, tmp_path):
    """Without the .toml the defaults would be taken, but the file itself says that they are wrong."""
    alone = tmp_path / "alone.keras"
    alone.write_bytes(archive.read_bytes())
    with pytest.raises(LayoutError, match=r"the file's own graph differs .*\.toml beside it"):
        read_source(alone)


def test_outputs_that_can_not_be(archive, spec, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="exists"):
        write_model(lively(spec), archive)
    monkeypatch.setattr("deeplabzoo.whole_models._SAVE", "raise SystemExit('no luck')")
    with pytest.raises(BackendError, match=r"Keras could not save .*: no luck"):
        write_model(lively(spec), tmp_path / "x.keras")
    assert list(tmp_path.iterdir()) == []
