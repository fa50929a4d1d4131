"""Named models, and their weights from a server that does everything wrong."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import http.server
import io
import re
import tarfile
import threading
import time
from typing import ClassVar

import pytest
from helpers import digests, lively, small_spec, with_counters

import deeplabzoo
from deeplabzoo.core.analysis import parameter_count
from deeplabzoo.errors import DownloadError, SpecError
from deeplabzoo.models import canonical_model
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.layouts import LAYOUTS, get_layout, torchvision
from deeplabzoo.weights_converter.ledger import to_foreign
from deeplabzoo.zoo import fetch as fetching
from deeplabzoo.zoo.fetch import fetch
from deeplabzoo.zoo.models import PRESETS, PUBLISHED, Published, list_models, named_spec

DIGITS = re.compile(r"[0-9a-f]{8,64}|")


def test_metadata():
    assert len({*PRESETS, *PUBLISHED}) == len(PRESETS) + len(PUBLISHED)
    for name, preset in PRESETS.items():
        assert preset.name == name
        spec = preset.make()
        assert name.split(".")[0] == spec.title
        assert spec == named_spec(name)
        assert preset.source
    for name, weights in PUBLISHED.items():
        assert weights.name == name
        assert weights.preset in PRESETS
        assert name.startswith(weights.preset)
        assert weights.layout in LAYOUTS
        assert DIGITS.fullmatch(weights.digest)
        assert re.fullmatch(r"https?://[\w./-]+", weights.url)
        assert weights.licence in ("Apache-2.0", "BSD-3-Clause")
        assert 0 < weights.miou < 100
        assert weights.megabytes > 1
        # The preset's parameters fill about the published size: float32 weights, twice that with optimizer slots.
        size = 4 * parameter_count(deeplabzoo.graph(named_spec(weights.preset))) / 1e6
        assert size * 0.6 < weights.megabytes < size * 3
        get_layout(weights.layout).entries(named_spec(weights.preset), get_layout(weights.layout).writes[0])
        if weights.digest:  # torchvision puts the digest into the file's name
            assert weights.digest in weights.url


def test_published_figures():
    """Layouts.md, sections 1 and 4."""
    assert PUBLISHED["v3_resnet50.torchvision_coco"].miou == 66.4
    assert PUBLISHED["v3_resnet101.torchvision_coco"].miou == 67.4
    assert PUBLISHED["v3_mobilenet_v2.tf_voc_trainaug"].miou == 75.32
    assert PUBLISHED["v3_mobilenet_v2.tf_voc_trainval"].miou == 80.25
    assert PUBLISHED["v3_mobilenet_v2.tf_dm05_voc_trainval"].miou == 71.83


def test_list_models():
    assert list_models() == sorted({*PRESETS, *PUBLISHED})
    assert set(list_models("resnet101")) == {n for n in list_models() if "resnet101" in n}
    assert list_models("v2_*") == ["v2_resnet101", "v2_resnet101.kazuto", "v2_vgg16"]
    assert list_models("nothing") == []


def test_named_spec():
    assert named_spec("v3_resnet50.torchvision", num_classes=5).num_classes == 5
    assert named_spec("v3_resnet50.torchvision", output_stride=16).aspp.rates == (6, 12, 18)
    assert named_spec("v3_resnet50", output_stride=8) == named_spec("v3", backbone="resnet50", output_stride=8)
    assert named_spec(small_spec()) == small_spec()
    for name, options, message in (
        ("v3_resnet50.torchvison", {}, "did you mean 'v3_resnet50.torchvision'"),
        ("v3_resnet50.torchvision", {"backbone": "resnet101"}, "backbone = 'resnet101' was asked for"),
        ("v3_resnet50.torchvision", {"rates": (1, 2, 3)}, "rates can't be changed in a finished spec"),
    ):
        with pytest.raises(SpecError, match=message):
            named_spec(name, **options)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`; some paths misbehave."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        name = self.path.lstrip("/")
        self.asked.append(name)
        if name.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", "/" + name.removeprefix("moved/"))
            self.end_headers()
            return
        stall = name.startswith("stalls/")
        body = self.files.get(name.split("/")[-1])
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if stall or name.startswith("cut/"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if stall:
                time.sleep(3)
            return
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Its address; `PUBLISHED` is empty and the cache is in `tmp_path`."""
    Handler.files, Handler.asked = {}, []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("DEEPLABZOO_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    for name in list(PUBLISHED):
        monkeypatch.delitem(PUBLISHED, name)
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def publish(server, monkeypatch):
    def add(path, *, digest="", name="v3_test", layout="deeplabzoo"):
        entry = Published(name, "v3_resnet50", f"{server}/{path}", layout, digest, 1.0, "MIT", "x", 50.0, "y")
        monkeypatch.setitem(PUBLISHED, name, entry)
        return entry

    return add


def sha(data):
    return hashlib.sha256(data).hexdigest()


def left(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").glob("**/*")) if (tmp_path / "cache").exists() else []


def test_a_good_file(publish, tmp_path):
    Handler.files["m.bin"] = b"weights" * 1000
    publish("m.bin", digest=sha(Handler.files["m.bin"])[:8])
    path = fetch("v3_test")
    assert path.read_bytes() == Handler.files["m.bin"]
    assert (tmp_path / "cache" / "m.bin.sha256").read_text().strip() == sha(Handler.files["m.bin"])
    assert fetch("v3_test") == path
    assert Handler.asked == ["m.bin"]  # the second time from the cache
    assert left(tmp_path) == ["m.bin", "m.bin.sha256"]


def test_redirect(publish):
    Handler.files["m.bin"] = b"x"
    publish("moved/m.bin")
    assert fetch("v3_test").read_bytes() == b"x"
    assert Handler.asked == ["moved/m.bin", "m.bin"]


def test_wrong_digest(publish, tmp_path):
    Handler.files["m.bin"] = b"tampered"
    publish("m.bin", digest="0123abcd")
    with pytest.raises(DownloadError, match=rf"has SHA-256 {sha(b'tampered')[:16]}\.\.\., expected 0123abcd"):
        fetch("v3_test")
    assert left(tmp_path) == []


def test_pinned_at_first_use(publish, tmp_path):
    """Where the project publishes no digest the first download sets it."""
    Handler.files["m.bin"] = b"first"
    publish("m.bin")
    path = fetch("v3_test")
    path.write_bytes(b"rotten")
    with pytest.raises(DownloadError, match=r"remove m\.bin\.sha256 only if"):
        fetch("v3_test")
    assert not path.exists()
    assert fetch("v3_test").read_bytes() == b"first"
    path.unlink()
    Handler.files["m.bin"] = b"second"
    with pytest.raises(DownloadError, match="expected"):
        fetch("v3_test")
    (tmp_path / "cache" / "m.bin.sha256").unlink()
    assert fetch("v3_test").read_bytes() == b"second"


# What pooch leaves open when a connection breaks is closed by the garbage collector.
LEAK = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LEAK
@pytest.mark.parametrize("path", ["cut/m.bin", "nowhere.bin"])
def test_broken_downloads(publish, tmp_path, path):
    Handler.files["m.bin"] = b"x" * 100_000
    publish(path)
    with pytest.raises(DownloadError, match=r"can't be downloaded from http://127.*fetch it by hand") as caught:
        fetch("v3_test")
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []


@LEAK
def test_a_server_that_stalls(publish, tmp_path):
    Handler.files["m.bin"] = b"x" * 100_000
    publish("stalls/m.bin")
    start = time.monotonic()
    with pytest.raises(DownloadError, match="can't be downloaded"):
        fetch("v3_test", time_limit=0.5)
    gc.collect()
    assert time.monotonic() - start < 2.5
    assert left(tmp_path) == []


def test_no_server_and_no_name(publish, monkeypatch):
    publish("m.bin")
    monkeypatch.setitem(PUBLISHED, "v3_test", dataclasses.replace(PUBLISHED["v3_test"], url="http://127.0.0.1:9/m.bin"))
    with pytest.raises(DownloadError, match="can't be downloaded"):
        fetch("v3_test")
    with pytest.raises(DownloadError, match="did you mean 'v3_test'"):
        fetch("v3_tset")


def archive(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return stream.getvalue()


GOOD = [("net/model.ckpt-30000.index", b"index"), ("net/model.ckpt-30000.data-00000-of-00001", b"data")]


def test_archive(publish, tmp_path):
    Handler.files["net.tar.gz"] = archive([*GOOD, ("net/frozen_inference_graph.pb", b"graph")])
    publish("net.tar.gz")
    prefix = fetch("v3_test")
    assert prefix == tmp_path / "cache" / "net" / "model.ckpt-30000"
    assert prefix.with_name("model.ckpt-30000.index").read_bytes() == b"index"
    assert left(tmp_path) == ["model.ckpt-30000.data-00000-of-00001", "model.ckpt-30000.index", "net", "net.tar.gz",
                              "net.tar.gz.sha256"]  # fmt: skip
    assert fetch("v3_test") == prefix


def test_archive_that_wants_out(publish, tmp_path):
    """Only the names count: nothing is written outside the cache, no link is followed or made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    Handler.files["net.tar.gz"] = archive(
        [
            *GOOD,
            ("../../outside/model.ckpt-1.data-00000-of-00001", b"escaped"),
            (str(outside / "model.ckpt-2.data-00000-of-00001"), b"absolute"),
            ("net/model.ckpt-3.index", (tarfile.SYMTYPE, "/etc/passwd")),
            ("net/model.ckpt-4.index", (tarfile.LNKTYPE, "net/model.ckpt-30000.index")),
            ("net/model.ckpt-5.index", (tarfile.DIRTYPE, "")),
            ("model.ckpt-6.index.exe", b"other"),
        ]
    )
    publish("net.tar.gz")
    prefix = fetch("v3_test")
    assert prefix.name == "model.ckpt-30000"
    assert list(outside.iterdir()) == []
    assert not any(p.is_symlink() for p in prefix.parent.iterdir())
    assert {p.name for p in prefix.parent.iterdir() if p.suffix == ".index"} == {"model.ckpt-30000.index"}
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "outside"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*GOOD, ("net/model.ckpt-1.index", b"")], "holds 2 checkpoints"),
        ([("net/frozen.pb", b"")], "holds 0 checkpoints"),
        (None, "can't be unpacked"),
    ],
)
def test_bad_archives(publish, tmp_path, members, message):
    Handler.files["net.tar.gz"] = archive(members) if members else archive(GOOD)[:80]
    publish("net.tar.gz")
    with pytest.raises(DownloadError, match=message) as caught:
        fetch("v3_test")
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["net.tar.gz", "net.tar.gz.sha256"]


def test_published_weights_by_name(publish, tmp_path):
    """`weights=NAME` downloads, reads in the layout of the record, and comes out as the preset."""
    spec = torchvision.template("resnet50", 21, aux=True, channels=(3, 8, 8))
    model = with_counters(lively(spec))
    formats.write(tmp_path / "tv.pth", to_foreign(model.weights, get_layout("torchvision"), spec, "torch")[0])
    Handler.files["tv.pth"] = (tmp_path / "tv.pth").read_bytes()
    publish("tv.pth", layout="torchvision", digest=sha(Handler.files["tv.pth"])[:8])
    made, anew = canonical_model(weights="v3_test")
    assert isinstance(made, Canonical)
    assert anew == []
    assert made.spec == spec
    assert digests(made.weights) == digests(model.weights)
    assert len(made.card.classes) == 21
    assert fetching.cache_folder() == tmp_path / "cache"
