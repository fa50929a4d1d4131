"""Folders of the hub: a configuration beside the weights, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_samples import run_framework, same, sample

from deeplabzoo.errors import FormatError, OutputError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import hub_folder

CONFIG = {"_model_class": "DeepLabV3Plus", "encoder_name": "resnet50", "classes": 21, "aux_params": None}
ONE = {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "b": np.array(3, "i8")}


def folder(path: Path, *, config: Any = CONFIG) -> Path:
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def listing(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def sharded(path: Path, weight_map: Any = None, suffix: str = "safetensors") -> Path:
    """Write a folder of two shards, each with a tensor."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    folder(path)
    names = {name: f"{stem}-{i:05d}-of-00002.{suffix}" for i, name in enumerate(ONE, 1)}
    for name, file in names.items():
        formats.write(path / file, {name: ONE[name]})
    index = {"metadata": {"total_size": 32}, "weight_map": names if weight_map is None else weight_map}
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(("name", "inner"), [("model.safetensors", "safetensors"), ("pytorch_model.bin", "torch")])
def test_one_file(tmp_path, name, inner):
    path = folder(tmp_path / "hub")
    formats.write(path / name, sample(), format=inner)
    checkpoint = formats.read(path)
    assert checkpoint.format == formats.detect(path) == "hub-folder"
    same(sample(), checkpoint.tensors, ordered=inner == "torch")
    assert checkpoint.facts == {"config": CONFIG}
    alone = formats.read(path / name)
    assert (alone.format, alone.facts) == (inner, {"config": CONFIG})
    renamed = (path / name).rename(path / f"my_{name}")
    assert formats.read(renamed).facts == {}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path, suffix):
    checkpoint = formats.read(sharded(tmp_path / "hub", suffix=suffix))
    same(ONE, checkpoint.tensors)
    assert checkpoint.facts == {"config": CONFIG}
    assert checkpoint.notes == ()


def test_the_better_of_two_files_is_read_and_that_is_said(tmp_path):
    path = folder(tmp_path / "hub")
    formats.write(path / "model.safetensors", ONE)
    formats.write(path / "pytorch_model.bin", {"other": np.ones(1)})
    checkpoint = formats.read(path)
    assert set(checkpoint.tensors) == set(ONE)
    assert checkpoint.notes == ("read model.safetensors; left out pytorch_model.bin",)


def test_tensors_that_the_index_does_not_name_are_noted(tmp_path):
    path = sharded(tmp_path / "hub")
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"b": "model-00002-of-00002.safetensors"}})
    )
    formats.write(path / "model-00002-of-00002.safetensors", {"b": ONE["b"], "c": ONE["b"]}, force=True)
    checkpoint = formats.read(path)
    assert list(checkpoint.tensors) == ["b"]
    assert checkpoint.notes == ("ignored 1 tensors that model.safetensors.index.json does not name",)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"b": "../hub/model-00002-of-00002.safetensors"}, "the same folder"),
        ({"b": "/etc/passwd"}, "the same folder"),
        ({"b": "sub/x.safetensors"}, "the same folder"),
        ({"b": "..\\x.safetensors"}, "the same folder"),
        ({"b": ".."}, "the same folder"),
        ({"b": ""}, "the same folder"),
        ({"b": "a\0b"}, "the same folder"),
        ({"b": "gone.safetensors"}, "is not there"),
        ({"b": "config.json"}, "damaged|pickle"),
        ({"b": "model-00001-of-00002.safetensors"}, "do not hold them"),
        ({"b": 3}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({str(i): f"{i}.safetensors" for i in range(1001)}, "the limit is 1000"),
    ],
)
def test_an_index_that_lies(tmp_path, weight_map, said):
    path = sharded(tmp_path / "hub", weight_map)
    with pytest.raises(FormatError, match=said) as caught:
        formats.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is damaged"),
        ("[]", "JSON list"),
        ("[" * 100_000, "is damaged"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than"),
        ('{"a": ' + "9" * 5000 + "}", "is damaged"),
        ('{"a": "' + "x" * 5_000_000 + '"}', "the limit is"),
    ],
)
def test_a_configuration_that_can_t_be_read(tmp_path, config, said):
    path = folder(tmp_path / "hub", config=config)
    formats.write(path / "model.safetensors", ONE)
    with pytest.raises(FormatError, match=said):
        formats.read(path)
    # The file alone is a checkpoint of its own, whatever lies beside it.
    alone = formats.read(path / "model.safetensors")
    assert alone.facts == {}
    assert "beside the file was not read" in alone.notes[0]


def test_folders_that_are_none(tmp_path):
    path = folder(tmp_path / "hub")
    with pytest.raises(FormatError, match="a folder"):
        formats.read(path)
    formats.write(path / "other.safetensors", ONE)
    with pytest.raises(FormatError, match="a folder"):
        formats.read(path)
    (path / "model.safetensors").mkdir()
    with pytest.raises(FormatError, match="a folder"):
        formats.read(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_damage_anywhere_is_refused_or_harmless(tmp_path, name):
    path = sharded(tmp_path / "hub")
    if name == "model.safetensors":
        formats.write(path / name, ONE)
    whole = (path / name).read_bytes()
    random = np.random.default_rng(1)
    damaged = [whole[:cut] for cut in range(len(whole))]
    for _ in range(200):
        content = bytearray(whole)
        for at in random.integers(0, len(whole), random.integers(1, 4)):
            content[at] = random.integers(0, 256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        (path / name).write_bytes(content)
        try:
            for value in formats.read(path).tensors.values():
                value.tobytes()
        except FormatError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(whole) // 2


# Writing.


def test_what_is_written_is_read_back(tmp_path):
    text = json.dumps(CONFIG, indent=2)
    formats.write(tmp_path / "hub", sample(), format="hub-folder", metadata={"config": text})
    formats.write(f"{tmp_path}/slash/", sample(), metadata={"config": text})
    for name in ("hub", "slash"):
        assert listing(tmp_path / name) == ["config.json", "model.safetensors"]
        assert (tmp_path / name / "config.json").read_text() == text
        checkpoint = formats.read(tmp_path / name)
        same(sample(), checkpoint.tensors, ordered=False)
        assert checkpoint.metadata == {"format": "pt"}
    assert listing(tmp_path) == ["hub", "slash"]
    assert formats.format_of_suffix("x/") == "hub-folder"


def test_only_a_hub_folder_is_replaced_and_only_when_forced(tmp_path):
    def write(path: Path, *, force: bool = False) -> None:
        formats.write(path, ONE, format="hub-folder", metadata={"config": "{}"}, force=force)

    write(tmp_path / "hub")
    with pytest.raises(OutputError, match="exists"):
        write(tmp_path / "hub")
    (tmp_path / "hub/config.json").write_text('{"old": 1}')
    write(tmp_path / "hub", force=True)
    assert formats.read(tmp_path / "hub").facts == {"config": {}}
    (tmp_path / "hub/README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README\.md"):
        write(tmp_path / "hub", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "hub")
    for name in ("mine", "file", "link"):
        with pytest.raises(OutputError, match="no hub folder"):
            write(tmp_path / name, force=True)
    with pytest.raises(OutputError, match="make it first"):
        write(tmp_path / "none/hub")
    assert listing(tmp_path) == ["file", "hub", "link", "mine"]
    assert listing(tmp_path / "hub") == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        (ONE, None, "takes metadata config"),
        (ONE, {"config": "{}", "a": "b"}, "takes metadata config"),
        (ONE, {"config": "["}, "is damaged"),
        (ONE, {"config": "[]"}, "JSON list"),
        ({"a": np.array(["x"])}, {"config": "{}"}, "can't hold"),
    ],
)
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, tensors, metadata, said):
    formats.write(tmp_path / "old", ONE, format="hub-folder", metadata={"config": "{}"})
    for name in ("new", "old"):
        with pytest.raises(OutputError, match=said):
            formats.write(tmp_path / name, tensors, format="hub-folder", metadata=metadata, force=True)
    assert listing(tmp_path) == ["old"]
    same(ONE, formats.read(tmp_path / "old").tensors, ordered=False)


def test_a_disk_that_fails_while_the_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "exchange", lambda first, second: False)  # not every file system can
    formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": "{}"})
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == tmp_path / "hub" and (self / "config.json").read_text() != "{}":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="No space left"):
        formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": '{"a": 1}'}, force=True)
    assert listing(tmp_path) == ["hub"]
    assert formats.read(tmp_path / "hub").facts == {"config": {}}


@pytest.mark.parametrize("left", [0, 1])
def test_an_interrupt_while_the_name_is_taken(tmp_path, monkeypatch, left):
    """Before either of the two renames where folders can't be exchanged."""
    monkeypatch.setattr(hub_folder, "exchange", lambda first, second: False)
    formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": "{}"})
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": '{"a": 1}'}, force=True)
    assert listing(tmp_path) == ["hub"]
    assert formats.read(tmp_path / "hub").facts == {"config": {}}


def test_what_was_replaced_is_kept_where_it_can_t_be_moved_back(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "exchange", lambda first, second: False)
    formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": "{}"})
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == tmp_path / "hub":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": '{"a": 1}'}, force=True)
    (kept,) = tmp_path.iterdir()
    assert formats.read(kept).facts == {"config": {}}


TORCH = """
import torch
from safetensors.torch import load_file, save_file
folder = sys.argv[1] + "/"
ours = load_file(folder + "hub/model.safetensors")
torch.save(ours, folder + "theirs/pytorch_model.bin")
print(json.dumps({name: list(value.shape) for name, value in ours.items()}))
"""


def test_torch_reads_what_is_written_and_is_read(tmp_path):
    formats.write(tmp_path / "hub", ONE, format="hub-folder", metadata={"config": "{}"})
    folder(tmp_path / "theirs")
    assert run_framework("torch", TORCH, tmp_path) == {"a.weight": [2, 3], "b": []}
    same(ONE, formats.read(tmp_path / "theirs").tensors, ordered=False)
