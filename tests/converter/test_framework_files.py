"""The files that a framework saves itself are ours, and ours are what it loads: names, spec and every bit."""

from __future__ import annotations

import pytest
from helpers import digests, lively, python, small_spec

from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.weights_converter.layouts import get_layout

SUFFIX = {"torch": ".pth", "paddle": ".pdparams", "keras": ".weights.h5"}

SPECS = {
    "v3plus": small_spec(decoder={"dropout": (0.5, 0.1)}),
    "v3 with an auxiliary head": small_spec("v3", aux={"channels": 8}, output={"values": "probabilities"}),
}

# Loads our file with the framework's own function, saves it with the framework's own function under another name.
_CODE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import warnings
warnings.simplefilter("ignore")
import deeplabzoo
from deeplabzoo.core.spec import read_spec
from pathlib import Path
backend, spec, ours, theirs = sys.argv[1:]
model = deeplabzoo.build(read_spec(Path(spec))[0], backend=backend, seed=99)
"""
_LOAD_AND_SAVE = {
    "torch": "import torch\nmodel.load_state_dict(torch.load(ours, weights_only=True), strict=False)\n"
    "torch.save(model.state_dict(), theirs)",
    "paddle": "import paddle\nmissing, unexpected = model.set_state_dict(paddle.load(ours))\n"
    "assert not missing and not unexpected\npaddle.save(model.state_dict(), theirs)",
    "keras": "model.load_weights(ours)\nmodel.save_weights(theirs)",
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_load_and_save(backend, spec, tmp_path):
    folder = backend.split("/")[0]
    ours, theirs = (tmp_path / f"{name}{SUFFIX[folder]}" for name in ("ours", "theirs"))
    model = lively(spec)
    write_model(model, ours)
    python(_CODE + _LOAD_AND_SAVE[folder], backend, f"{ours}.toml", ours, theirs)
    for given in (spec, None):  # with the spec, and from what the names tell
        read = read_source(theirs, spec=given)
        weights = {n: a for n, a in read.model.weights.items() if not n.endswith("num_batches_tracked")}
        assert digests(weights) == digests(model.weights)
    assert read.model.spec.num_classes == spec.num_classes
    assert read.assumed


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_keras_file_of_another_network(spec, tmp_path):
    """The order alone tells little: a file of another network is refused by names and shapes."""
    write_model(lively(spec), tmp_path / "m.weights.h5")
    entries = get_layout("deeplabzoo").entries(spec, "keras-h5")
    assert len({entry.foreign for entry in entries}) == len(entries)
    for other in (small_spec("v3"), small_spec(aspp={"branch": "plain"}), spec.replace(num_classes=6)):
        with pytest.raises(LayoutError):
            read_source(tmp_path / "m.weights.h5", spec=other)
