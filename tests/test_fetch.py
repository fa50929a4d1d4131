"""`fetch`: published weights downloaded, checked, unpacked, converted and cached, from a server that misbehaves."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fetch_server import Server, Site
from helpers import digests, lively, small_spec, with_counters

import deeplabzoo
from deeplabzoo.cli import main
from deeplabzoo.core.graph import Graph
from deeplabzoo.errors import DownloadError, LayoutError
from deeplabzoo.inference.classes import CITYSCAPES_CLASSES
from deeplabzoo.inference.preprocessing import IMAGENET, UNIT
from deeplabzoo.models import canonical_model
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import read_source
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.ledger import to_foreign
from deeplabzoo.zoo import download as downloading
from deeplabzoo.zoo import fetch as fetching
from deeplabzoo.zoo.fetch import fetch, fetch_model
from deeplabzoo.zoo.presets import PRESETS, Preset
from deeplabzoo.zoo.published import PUBLISHED, Published

SPEC = small_spec("v3plus", num_classes=19)
NAME = "small_test"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """`PUBLISHED` is empty and the cache is in `tmp_path`."""
    monkeypatch.setenv("DEEPLABZOO_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloading, "_PAUSE", 0.01)
    monkeypatch.setitem(PRESETS, "small", Preset("small", "a test", lambda: SPEC.replace(num_classes=5), UNIT))
    kept = dict(PUBLISHED)
    PUBLISHED.clear()
    with Server() as running:
        yield running
    PUBLISHED.clear()
    PUBLISHED.update(kept)  # in their order, which monkeypatch would turn round


@pytest.fixture
def publish(server, monkeypatch):
    def add(file, body=b"", **fields):
        server.sites[file] = body if isinstance(body, Site) else Site(body)
        known = {
            "name": NAME,
            "preset": "small",
            "num_classes": 19,
            "url": f"{server.address}/{file}",
            "layout": "deeplabzoo",
            "dataset": "cityscapes",
            "licence": "MIT",
            "source": "https://example.org/owner/repository",
            "published_megabytes": 5.0,
            "miou": 50.0,
            "judged": "nothing",
        }
        weights = Published(**{**known, **fields})
        monkeypatch.setitem(PUBLISHED, weights.name, weights)
        return weights

    return add


@pytest.fixture(scope="module")
def model():
    return with_counters(lively(SPEC))


@pytest.fixture(scope="module")
def pth(model, tmp_path_factory):
    """The model as a `.pth` of our own names, without a spec beside it."""
    path = tmp_path_factory.mktemp("pth") / "m.pth"
    formats.write(path, dict(to_foreign(model.weights, get_layout("deeplabzoo"), SPEC, "torch")[0]))
    return path.read_bytes()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def left(tmp_path, name=NAME):
    folder = tmp_path / "cache" / name
    return sorted(str(path.relative_to(folder)) for path in folder.glob("**/*"))


def asked(server):
    return [name for name, _, _ in server.asked]


def test_a_good_file(server, publish, tmp_path):
    publish("m.bin", b"weights", digest=sha(b"weights")[:8])
    path = fetch(NAME)
    assert path == tmp_path / "cache" / NAME / "m.bin"
    assert path.read_bytes() == b"weights"
    assert path.with_name("m.bin.sha256").read_text().strip() == sha(b"weights")
    assert fetch(NAME) == path
    assert asked(server) == ["m.bin"]  # the second time from the cache
    assert left(tmp_path) == ["m.bin", "m.bin.sha256"]


def test_two_files_of_one_name(publish):
    """Many projects call every file `model.pdparams`."""
    publish("a/model.pdparams", b"first", name="one")
    publish("b/model.pdparams", b"second", name="two")
    assert (fetch("one").read_bytes(), fetch("two").read_bytes()) == (b"first", b"second")


def test_wrong_digest(publish, tmp_path):
    publish("m.bin", b"tampered", digest="0123abcd")
    with pytest.raises(DownloadError, match=rf"has SHA-256 {sha(b'tampered')[:16]}\.\.\., expected 0123abcd"):
        fetch(NAME)
    assert left(tmp_path) == []


def test_pinned_at_first_use(server, publish, tmp_path):
    """Where the project publishes no digest the first download sets it."""
    publish("m.bin", b"first")
    path = fetch(NAME)
    path.write_bytes(b"rotten")
    with pytest.raises(DownloadError, match=r"remove .*m\.bin\.sha256 only if"):
        fetch(NAME)
    assert not path.exists()
    assert fetch(NAME).read_bytes() == b"first"
    server.sites["m.bin"] = Site(b"second", etag='"2"')
    with pytest.raises(DownloadError, match="expected"):
        fetch(NAME, force=True)
    assert path.read_bytes() == b"first"  # what was good is not lost to what is wrong
    path.with_name("m.bin.sha256").unlink()
    assert fetch(NAME, force=True).read_bytes() == b"second"


def test_broken_off_and_resumed(server, publish, tmp_path):
    publish("m.bin", Site(b"x" * 90_000, cuts=[50_000] + [0] * downloading.FRUITLESS))
    with pytest.raises(DownloadError) as caught:
        fetch(NAME)
    assert str(caught.value) == (
        f"{NAME} can't be downloaded from {server.address}/m.bin: the connection ended after 50,000 of 90,000 bytes; the "
        f"50,000 bytes that came are kept, and the same command goes on from there; or fetch it by hand and put it at "
        f"{tmp_path / 'cache' / NAME / 'm.bin'}"
    )
    assert left(tmp_path) == ["m.bin.part", "m.bin.part.json"]
    assert fetch(NAME).read_bytes() == b"x" * 90_000
    assert server.asked[-1][1] == "bytes=50000-"
    assert left(tmp_path) == ["m.bin", "m.bin.sha256"]


def test_offline(publish, tmp_path):
    """The line names the address, and where to put the file."""
    publish("m.bin", url="http://127.0.0.1:9/m.bin")
    file = tmp_path / "cache" / NAME / "m.bin"
    with pytest.raises(
        DownloadError, match=f"http://127.0.0.1:9/m.bin: no connection; .*by hand and put it at {file}$"
    ):
        fetch(NAME)
    file.write_bytes(b"by hand")
    assert fetch(NAME).read_bytes() == b"by hand"


def test_larger_than_listed(publish, tmp_path):
    publish("m.bin", b"x" * 50_000, published_megabytes=0.01)
    with pytest.raises(DownloadError, match="announces 50,000 bytes, expected at most 40,000"):
        fetch(NAME)
    assert left(tmp_path) == []


def test_stalled(publish):
    publish("m.bin", Site(b"x" * 100, cuts=[10, 0, 0, 0], stalls=True))
    with pytest.raises(DownloadError, match=r"nothing came for 0\.1 s"):
        fetch(NAME, time_limit=0.1)


def test_no_such_name(publish):
    publish("m.bin", b"x")
    with pytest.raises(DownloadError, match=f"unknown published weights 'smal_test'.*did you mean '{NAME}'"):
        fetch("smal_test")


def test_a_cache_that_can_not_be(publish, tmp_path):
    publish("m.bin", b"x")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DownloadError, match=r"cache folder .* can't be used: .*; set DEEPLABZOO_CACHE to another"):
        fetch(NAME)


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
    publish("net.tar.gz", archive([*GOOD, ("net/frozen_inference_graph.pb", b"graph")]))
    prefix = fetch(NAME)
    assert prefix == tmp_path / "cache" / NAME / "net" / "model.ckpt-30000"
    assert prefix.with_name("model.ckpt-30000.index").read_bytes() == b"index"
    assert left(tmp_path) == [
        "net",
        "net.tar.gz",
        "net.tar.gz.sha256",
        "net/model.ckpt-30000.data-00000-of-00001",
        "net/model.ckpt-30000.index",
    ]
    assert fetch(NAME) == prefix


def test_a_new_archive_is_unpacked_anew(server, publish):
    publish("net.tar.gz", archive(GOOD))
    prefix = fetch(NAME)
    server.sites["net.tar.gz"] = Site(archive([(name, content * 2) for name, content in GOOD]))
    prefix.parent.with_name("net.tar.gz.sha256").unlink()
    assert fetch(NAME, force=True).with_name("model.ckpt-30000.index").read_bytes() == b"indexindex"


def test_archive_that_wants_out(publish, tmp_path):
    """Only the names count: nothing is written outside the cache, no link is followed or made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        *GOOD,
        ("../../outside/model.ckpt-1.data-00000-of-00001", b"escaped"),
        (str(outside / "model.ckpt-2.data-00000-of-00001"), b"absolute"),
        ("net/model.ckpt-3.index", (tarfile.SYMTYPE, "/etc/passwd")),
        ("net/model.ckpt-4.index", (tarfile.LNKTYPE, "net/model.ckpt-30000.index")),
        ("net/model.ckpt-5.index", (tarfile.DIRTYPE, "")),
        ("model.ckpt-6.index.exe", b"other"),
    ]
    publish("net.tar.gz", archive(members))
    prefix = fetch(NAME)
    assert prefix.name == "model.ckpt-30000"
    assert list(outside.iterdir()) == []
    assert not any(path.is_symlink() for path in prefix.parent.iterdir())
    assert {path.name for path in prefix.parent.iterdir() if path.suffix == ".index"} == {"model.ckpt-30000.index"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "outside"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (archive([*GOOD, ("net/model.ckpt-1.index", b"")]), "holds 2 checkpoints"),
        (archive([("net/frozen.pb", b"")]), "holds 0 checkpoints"),
        (archive(GOOD)[:80], "can't be unpacked: EOFError"),
        (b"<html>not found</html>", "can't be unpacked: BadGzipFile"),
        (archive([*GOOD, ("bomb", bytes(50_000_000))]), "unpacks to more than 40,000,000 bytes"),
        (archive([("net/model.ckpt-1.index", bytes(50_000_000))]), "unpacks to more than 40,000,000 bytes"),
    ],
    ids=["two checkpoints", "none", "truncated", "a web page", "a bomb beside it", "a bomb"],
)
def test_bad_archives(publish, tmp_path, body, message):
    """Such a file goes, and nothing of it stays."""
    publish("net.tar.gz", body)
    with pytest.raises(
        DownloadError, match=f"does not hold the weights it should, and the file was removed.*{message}"
    ):
        fetch(NAME)
    assert left(tmp_path) == []


def test_converted_once(server, publish, model, pth, tmp_path):
    """Spec from the preset and the class count, classes from the data set, digest and address in the card."""
    weights = publish("m.pth", pth, digest=sha(pth)[:8])
    found = fetch_model(NAME)
    assert found.path == tmp_path / "cache" / NAME / f"{NAME}.safetensors"
    assert (found.weights, found.file.name, found.sha256) == (weights, "m.pth", sha(pth))
    read = read_source(found.path).model
    assert read.spec == SPEC
    assert digests(read.weights) == digests(model.weights)
    assert read.card.classes == CITYSCAPES_CLASSES
    assert read.card.preprocessing == UNIT.to_dict()
    assert read.card.provenance["source"] == weights.url
    assert read.card.provenance["sha256"] == sha(pth)
    before = found.path.stat().st_ino
    found.file.unlink()  # what was downloaded is needed no longer
    assert fetch_model(NAME) == found
    assert found.path.stat().st_ino == before
    assert asked(server) == ["m.pth"]


def test_converted_anew(publish, pth, monkeypatch):
    """Where the cached model is damaged, or not what would be made today."""
    weights = publish("m.pth", pth, preprocessing=IMAGENET)
    path = fetch_model(NAME).path
    good = path.read_bytes()
    assert read_source(path).model.card.preprocessing == IMAGENET.to_dict()
    path.write_bytes(good[:1000])
    fetch_model(NAME)
    assert path.read_bytes() == good
    changed = dataclasses.replace(weights, licence="Apache-2.0")
    monkeypatch.setitem(PUBLISHED, NAME, changed)
    fetch_model(NAME)
    assert read_source(path).model.card.provenance["licence"] == "Apache-2.0"
    monkeypatch.setattr(fetching, "__version__", "99.0")
    fetch_model(NAME)
    assert read_source(path).model.card.provenance["converted by"] == "deeplabzoo 99.0"


def test_not_the_weights(server, publish, tmp_path, pth):
    publish("m.pth", b"<html>not found</html>")
    with pytest.raises(DownloadError, match=r"m\.pth does not hold the weights it should, and the file was removed: "):
        fetch_model(NAME)
    assert left(tmp_path) == []
    publish("m.pth", b"<html>", digest=sha(b"<html>")[:8])  # the project's own bytes stay
    with pytest.raises(DownloadError, match=r"is the file that its project published, but can't be read: "):
        fetch_model(NAME)
    assert left(tmp_path) == ["m.pth"]
    publish("m.pth", pth, digest=sha(pth)[:8], num_classes=7, name="other")
    with pytest.raises(LayoutError, match="classifier"):
        fetch_model("other")


def test_no_such_layout(server, publish):
    publish("m.pth", b"x", layout="nobody")
    with pytest.raises(LayoutError, match="unknown layout 'nobody'"):
        fetch_model(NAME)
    assert server.asked == []  # told before the download


def test_by_name_everywhere(publish, pth):
    """`weights=NAME` comes out of the same cache."""
    publish("m.pth", pth)
    made, anew = canonical_model(weights=NAME)
    assert (made.spec, anew) == (SPEC, [])
    made, anew = canonical_model(weights=NAME, num_classes=3, reset_classifier=True)
    assert made.spec.num_classes == 3
    assert anew
    assert isinstance(made.graph, Graph)
    out = deeplabzoo.run(NAME, np.zeros((1, 3, 33, 33)), backend="torch")
    assert out.shape == (1, 19, 33, 33)


def test_commands_that_read_files(publish, pth, tmp_path, monkeypatch):
    """`inspect`, `convert` and `info` take the name too, and a file of that name comes first."""
    publish("m.pth", pth)
    runner = CliRunner()
    data = json.loads(runner.invoke(main, ["inspect", NAME, "--json"]).stdout)
    assert (data["file"], data["format"], len(data["classes"])) == (NAME, "safetensors", 19)
    assert runner.invoke(main, ["convert", NAME, str(tmp_path / "out.pdparams")]).exit_code == 0
    assert read_source(tmp_path / "out.pdparams").model.spec == SPEC
    assert json.loads(runner.invoke(main, ["info", NAME, "--json"]).stdout)["spec"]["num_classes"] == 19
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_text("no weights")
    assert f"{NAME}: " in runner.invoke(main, ["inspect", NAME]).stderr


def test_the_real_checkpoint(checkpoint, monkeypatch, tmp_path):
    """TensorFlow's own files, packed as they are published and put there by hand: the weights that any reader finds."""
    monkeypatch.setenv("DEEPLABZOO_CACHE", str(tmp_path))
    name = "v3_mobilenet_v2.tf_voc_trainval"
    (tmp_path / name).mkdir()
    with tarfile.open(tmp_path / name / PUBLISHED[name].file_name, "w:gz", compresslevel=1) as tar:
        for file in checkpoint.parent.glob(f"{checkpoint.name}.*"):
            tar.add(file, f"deeplabv3_mnv2_pascal_trainval/{file.name}")
    found, direct = read_source(fetch_model(name).path).model, read_source(checkpoint).model
    assert found.spec == direct.spec == PUBLISHED[name].spec()
    assert digests(found.weights) == digests(direct.weights)
    assert (found.card.classes, found.card.preprocessing) == (direct.card.classes, direct.card.preprocessing)


def test_two_processes(server, publish, pth, tmp_path):
    """The second waits for the first, and takes what it made: one download, one whole file."""
    weights = publish("m.pth", Site(pth, cuts=[len(pth) // 3, len(pth) // 3], ranges=True))
    code = """
import sys
from pathlib import Path
from deeplabzoo.core.spec import read_spec
from deeplabzoo.zoo.fetch import fetch_model
from deeplabzoo.zoo.presets import PRESETS, Preset
from deeplabzoo.zoo.published import PUBLISHED, Published
spec = read_spec(Path(sys.argv[1]))[0]
PRESETS["small"] = Preset("small", "a test", lambda: spec)
PUBLISHED["small_test"] = Published(name="small_test", preset="small", num_classes=19, url=sys.argv[2],
    layout="deeplabzoo", dataset="voc", licence="MIT", source="https://example.org/a/b", published_megabytes=5.0)
print(fetch_model("small_test").sha256)
"""
    spec_file = tmp_path / "spec.json"
    spec_file.write_text(json.dumps(SPEC.to_dict()))
    command = [sys.executable, "-c", code, str(spec_file), weights.url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == [sha(pth)] * 3
    assert [wanted == "" for _, wanted, _ in server.asked].count(True) == 1
    assert left(tmp_path) == ["m.pth", "m.pth.sha256", f"{NAME}.safetensors"]


def test_command(publish, pth, tmp_path):
    publish("m.pth", pth)
    runner = CliRunner()
    done = runner.invoke(main, ["fetch", NAME])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'cache' / NAME / NAME}.safetensors\n")
    assert done.stderr == (
        f"{NAME}: {SPEC.title}, stride 8, 19 classes (cityscapes), mIoU 50 on nothing, MIT, from "
        "https://example.org/owner/repository\n"
    )
    done = runner.invoke(main, ["fetch", NAME, NAME, "--json", "--force"])
    data = json.loads(done.stdout)
    assert [one["sha256"] for one in data] == [sha(pth)] * 2
    assert data[0]["num_classes"] == 19
    done = runner.invoke(main, ["fetch", "nothing"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: unknown published weights 'nothing'")
    assert runner.invoke(main, ["fetch"]).exit_code == 2
