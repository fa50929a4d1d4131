"""Kills, full disks and folders that go: under the name of an output is the old file or the new one, nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import formats_killer
import numpy as np
import pytest
from formats_killer import SUFFIXES, Tensors, found, write
from formats_samples import table

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter import formats

KILLER = Path(formats_killer.__file__)


def run(what: str, folder: Path, number: int, *wanted: str, before: str = "") -> dict[str, list[str]]:
    """Run the program; with `before`, commands that need a mount of their own, in a namespace where they are allowed."""
    command = [sys.executable, str(KILLER), what, str(folder), str(number), *(wanted or SUFFIXES)]
    if before:
        command = ["unshare", "-rm", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if before and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no mounts here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_format_that_can_be_written_is_here():
    def writable(name: str) -> bool:
        try:
            return bool(formats.outputs("x", format=name))
        except OutputError:
            return False

    assert set(SUFFIXES) == set(filter(writable, formats.FORMATS))


def test_a_kill_before_any_change_leaves_the_old_or_the_new(tmp_path):
    for name, results in run("boundaries", tmp_path / "x", 0).items():
        # Once the new one is there it stays.
        assert results == ["old"] * results.count("old") + ["new"] * results.count("new"), name
        assert results.count("old") > 5, name
        assert results.count("new") > 1, name


@pytest.mark.parametrize(
    ("count", "least"), [(8, 0), pytest.param(300, 10, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, count, least):
    for name, results in run("moments", tmp_path / "x", count).items():
        assert len(results) == count
        assert set(results) <= {"old", "new"}, name
        assert results.count("old") >= least, name


def test_the_check_of_kills_would_see_a_writer_that_writes_in_place(tmp_path, monkeypatch):
    path = tmp_path / "m.npz"
    write(path, "npz", Tensors(1))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert found(path).startswith("neither: ")
    write(path, "npz", Tensors(3))
    assert found(path) == "a mixture"
    (tmp_path / "m.npz.tmp").touch()
    assert formats_killer.strays(path, "npz") == ["m.npz.tmp"]


def test_no_room_is_one_clear_error_and_the_old_file_stays(tmp_path):
    for name, results in run("limited", tmp_path / "x", 0).items():
        assert results == ["File too large; old"] * 4, name


def test_a_full_disk(tmp_path):
    disk = f"mount -t tmpfs -o size=256k none '{tmp_path}'"
    for name, results in run("full", tmp_path, 40_000, before=disk).items():
        assert results == ["No space left on device; old"], name


def test_a_disk_that_can_only_be_read(tmp_path):
    disk = f"mount -t tmpfs -o ro,size=256k none '{tmp_path}'"
    for name, (said,) in run("readonly", tmp_path, 0, before=disk).items():
        path = tmp_path / f"model{SUFFIXES[name]}"
        assert said in {
            f"output {output}: folder {tmp_path} can't be written; choose another"
            for output in {path, *formats.outputs(path, format=name)}
        }


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("stem", ["", ".", "./", "x" * 300, "a\0b"], ids=["none", "dot", "slash", "long", "zero byte"])
def test_names_that_no_file_has(tmp_path, monkeypatch, name, stem):
    monkeypatch.chdir(tmp_path)
    path = f"{stem}{SUFFIXES[name]}" if len(stem) > 2 else stem
    with pytest.raises(OutputError, match=r"expected a name|too long|is a folder") as caught:
        formats.write(path, Tensors(1), format=name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_longest_name_is_read_again_and_a_longer_one_refused(tmp_path, name):
    path = tmp_path / f"x{SUFFIXES[name]}"
    letter = "n" if "keras" in name else "\N{GRINNING FACE}"  # four bytes
    tensors = {f"{letter * 980}/{i}/vars/{i}": np.ones(2, "f4") for i in range(3)}
    write(path, name, tensors)
    assert table(formats.read(path).tensors) == table(tensors)
    with pytest.raises(OutputError, match="a name of 1009 characters; the limit is 1000"):
        write(path, name, {f"{'n' * 1000}/a/vars/0": np.ones(2, "f4")})


def test_keras_2_keeps_no_list_of_long_names(tmp_path):
    """It takes for each name as many bytes as for the longest."""
    with pytest.raises(OutputError, match="more than 1000 bytes"):
        formats.write(tmp_path / "x.h5", {f"{chr(0x1F600) * 400}/w": np.ones(2, "f4")})
    with pytest.raises(OutputError, match="more than 1000 bytes"):
        formats.write(
            tmp_path / "x.h5", {"a/w": np.ones(2, "f4")}, metadata={"layer_names": json.dumps(["a", "n" * 70_000])}
        )


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_folder_that_goes_while_it_is_written_to(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / f"model{SUFFIXES[name]}"
    with pytest.raises(OutputError, match="can't be written: No such file or directory") as caught:
        write(path, name, Tensors(2, lambda: shutil.rmtree(folder, ignore_errors=True)))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_tells_late(tmp_path, monkeypatch, name, number):
    """A file system over the network may take every byte and refuse when they are to be kept."""
    path = tmp_path / f"model{SUFFIXES[name]}"
    write(path, name, Tensors(1))
    before = sorted(tmp_path.iterdir())

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=f"can't be written: {os.strerror(number)}$"):
        write(path, name, Tensors(2))
    assert found(path) == "old"
    assert sorted(tmp_path.iterdir()) == before
