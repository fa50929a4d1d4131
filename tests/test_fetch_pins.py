"""What is pinned of a download, and what a canonical model in the cache keeps of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from fetch_server import Server, Site
from helpers import lively, small_spec

from deeplabzoo.errors import DownloadError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import read_source
from deeplabzoo.zoo.fetch import fetch, fetch_model
from deeplabzoo.zoo.presets import PRESETS, Preset
from deeplabzoo.zoo.published import PUBLISHED, Published

SPEC = small_spec("v3plus", num_classes=19)
NAME = "small_test"


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Publishes a file at a server of our own; the cache is in `tmp_path`."""
    monkeypatch.setenv("DEEPLABZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(PRESETS, "small", Preset("small", "a test", lambda: SPEC))
    with Server() as server:

        def add(body, digest="", layout="deeplabzoo"):
            server.sites["m.bin"] = Site(body)
            weights = Published(
                name=NAME, preset="small", num_classes=19, url=f"{server.address}/m.bin", layout=layout, dataset="cityscapes",
                licence="MIT", source="https://example.org/a/b", published_megabytes=5.0, digest=digest,
            )  # fmt: skip
            monkeypatch.setitem(PUBLISHED, NAME, weights)
            return tmp_path / "cache" / NAME / "m.bin"

        yield add


def sha(data):
    return hashlib.sha256(data).hexdigest()


def model_bytes(folder, spec, spares=None):
    weights = dict(lively(spec).weights) | {f"spare:{name}": array for name, array in (spares or {}).items()}
    formats.write(folder / "m.safetensors", weights, force=True)
    return (folder / "m.safetensors").read_bytes()


def test_what_is_kept_aside_stays(publish, tmp_path):
    publish(model_bytes(tmp_path, SPEC, {"head.unused": np.arange(3, dtype="f4")}))
    model = read_source(fetch_model(NAME).path).model
    assert {name: array.tolist() for name, array in model.spares.items()} == {"head.unused": [0, 1, 2]}


def test_a_wrong_file_that_can_be_read_is_not_pinned(publish, tmp_path):
    file = publish(model_bytes(tmp_path, SPEC.replace(num_classes=7)))
    fetch(NAME)  # nobody has looked into it yet
    for _ in range(2):
        with pytest.raises(
            DownloadError, match=r"does not hold the weights it should, and the file was removed.*class"
        ):
            fetch_model(NAME)
        assert not list(file.parent.iterdir())
    right = model_bytes(tmp_path, SPEC)
    publish(right)
    assert fetch_model(NAME).sha256 == sha(right)


@pytest.mark.parametrize("pin", [b"", b"\xff\xfe", b"0", b"remove me\n"])
def test_a_pin_that_is_no_digest_is_written_anew(publish, pin):
    file = publish(b"weights")
    fetch(NAME)
    beside = file.with_name("m.bin.sha256")
    beside.write_bytes(pin)
    assert fetch(NAME) == file
    assert beside.read_text() == sha(b"weights") + "\n"


@pytest.mark.parametrize("pin", ["", sha(b"tampered")])
def test_no_pin_stands_in_for_the_published_digest(publish, pin):
    file = publish(b"tampered", digest="0123abcd")
    file.parent.mkdir(parents=True)
    file.with_name("m.bin.sha256").write_text(pin)
    with pytest.raises(DownloadError, match=r"expected 0123abcd\.\.\."):
        fetch(NAME)
    assert not file.exists()


def test_a_model_of_another_digest_than_the_published_is_made_anew(publish, tmp_path):
    right = model_bytes(tmp_path, SPEC)
    publish(right)
    fetch_model(NAME)
    publish(right, digest="0123abcd")
    with pytest.raises(DownloadError, match=r"expected 0123abcd\.\.\."):
        fetch_model(NAME)
