"""What training scripts put around a network: seen through, told apart, kept as plain data, and never executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_samples import run_framework, table

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats

ONE, TWO = np.ones(2, "f4"), np.zeros(3, "f4")


def saved(path: Path, value: Any, protocol: int = 2) -> Path:
    """Put a pickle where torch keeps its own; numpy arrays stand for tensors."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol))
    return path


def read(folder: Path, value: Any, protocol: int = 2) -> formats.Checkpoint:
    return formats.read(saved(folder / "x.pth", value, protocol))


STATE = {"a.weight": ONE, "b": TWO}


def prefixed(prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict",), ("model_state",), ("model_state_dict",), ("model",), ("net",), ("network",), ("weights",),
        ("params",), ("module",), ("ema",), ("model_ema",), ("state_dict_ema",), ("ema_state_dict",),
        ("model", "state_dict"), ("state_dict", "model"),
    ],
)  # fmt: skip
def test_wrappers(tmp_path, keys):
    value: Any = STATE
    for key in reversed(keys):
        value = {key: value}
    checkpoint = read(tmp_path, value)
    assert list(checkpoint.tensors) == list(STATE)
    assert checkpoint.notes == tuple(f"tensors found under {key!r}" for key in keys)


def test_other_wrappers_are_named(tmp_path):
    with pytest.raises(FormatError, match="there are some under of_something: save the one you want alone"):
        read(tmp_path, {"of_something": STATE})


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "ema_model.", "module._orig_mod.", "_orig_mod.module.model."],
)
def test_prefixes_that_every_tensor_has_are_stripped(tmp_path, prefix):
    checkpoint = read(tmp_path, prefixed(prefix))
    assert list(checkpoint.tensors) == list(STATE)
    assert checkpoint.notes == tuple(f"{part + '.'!r} prefix removed" for part in prefix.split(".")[:-1])


@pytest.mark.parametrize(
    "names",
    [
        ["encoder.model.conv1.weight", "encoder.model.bn1.weight", "decoder.x"],
        ["model.a", "head.b"],
        ["module.a", "b"],
        ["model", "model.a"],
        ["modules.a", "modules.b"],
        ["ema_models.a", "net.a"],
    ],
)
def test_other_names_stay_as_they_are(tmp_path, names):
    checkpoint = read(tmp_path, dict.fromkeys(names, ONE))
    assert list(checkpoint.tensors) == names
    assert checkpoint.notes == ()


def test_of_two_networks_the_trained_one_is_taken_and_the_other_named(tmp_path):
    for value in (
        {"model_ema": {"a": TWO}, "model": {"a": ONE}},
        {"state_dict": {"a": ONE}, "ema_state_dict": {"a": TWO}, "model": {"a": TWO}},
        {"model": {"state_dict": {"a": ONE}}, "ema": {"module": {"a": TWO}}},
    ):
        checkpoint = read(tmp_path, value)
        assert checkpoint.tensors["a"].tolist() == [1, 1]
        said = [note for note in checkpoint.notes if "another network left out" in note]
        assert len(said) == 1
        assert all(f"{key!r}" in said[0] for key in list(value) if key not in checkpoint.notes[0])
    both = {"model": STATE, "state_dict": STATE}
    assert not any("another network" in note for note in read(tmp_path, both).notes)


def test_an_average_among_the_tensors_is_left_out_and_that_is_said(tmp_path):
    checkpoint = read(tmp_path, prefixed("model.") | {f"ema_model.module.{name}": TWO for name in STATE})
    assert list(checkpoint.tensors) == list(STATE)
    assert checkpoint.notes == ("another network left out: the tensors called ema_model.*", "'model.' prefix removed")
    averaged = read(tmp_path, {"n_averaged": np.array(3)} | prefixed("module."))
    assert list(averaged.tensors) == list(STATE)
    assert "n_averaged" in averaged.notes[0]


def test_teacher_and_student_are_not_chosen_between(tmp_path):
    for value in (prefixed("student.") | prefixed("teacher."), {"model": prefixed("student.") | prefixed("teacher.")}):
        with pytest.raises(FormatError, match="student and teacher; save the one you want alone"):
            read(tmp_path, value)
    with pytest.raises(FormatError, match="some under student, teacher"):
        read(tmp_path, {"student": STATE, "teacher": STATE, "epoch": 1})


# What public implementations save.


class _Fake:
    """Classes of packages that are not installed, so that they can be pickled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def make(self, dotted: str, base: type = object) -> Any:
        module, _, name = dotted.rpartition(".")
        # The name of a method is pickled by the name of its class: what HistoryBuffer keeps of its own statistics.
        namespace = {"__module__": module, "mean": lambda self: 0}
        made = type(name, (base,), namespace)
        made.mean.__qualname__, made.mean.__module__ = f"{name}.mean", module
        path = module.split(".")
        for count in range(1, len(path) + 1):
            part = ".".join(path[:count])
            if part not in sys.modules:
                self._monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        setattr(sys.modules[module], name, made)
        return made


def test_mmsegmentation(tmp_path, monkeypatch):
    buffer = _Fake(monkeypatch).make("mmengine.logging.history_buffer.HistoryBuffer")
    history = buffer()
    history.__dict__ |= {"_log_history": np.ones(3), "_statistics_methods": {"mean": buffer.mean}}
    config = "norm_cfg = dict(type='SyncBN')\n" * 300
    value = {
        "meta": {
            "cfg": config,
            "dataset_meta": {"classes": ("road", "wall"), "palette": [[128, 64, 128], [1, 2, 3]]},
            "mmseg_version": "1.2.2",
            "epoch": 7,
            "time": datetime.datetime(2023, 1, 2),
        },
        "state_dict": STATE,
        "optimizer": {"state": {0: {"exp_avg": ONE}}, "param_groups": [{"lr": 0.1}]},
        "param_schedulers": [{"last_step": 3}],
        "message_hub": {"log_scalars": collections.OrderedDict({"train/lr": history}), "resumed_keys": {}},
    }
    for protocol in (2, 4):
        checkpoint = read(tmp_path, value, protocol)
        assert list(checkpoint.tensors) == list(STATE)
        assert checkpoint.facts["meta"] == {
            "cfg": config,
            "dataset_meta": {"classes": ["road", "wall"], "palette": [[128, 64, 128], [1, 2, 3]]},
            "mmseg_version": "1.2.2",
            "epoch": 7,
        }
        assert "message_hub (dict)" in checkpoint.notes[1]


def test_lightning(tmp_path, monkeypatch):
    fake = _Fake(monkeypatch)
    attributes = fake.make("lightning_fabric.utilities.data.AttributeDict", dict)
    config = fake.make("omegaconf.dictconfig.DictConfig")()
    config.__dict__ |= {"_content": {"lr": config.__class__}, "_metadata": {"ref_type": int}}
    value = {
        "epoch": 3,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": prefixed("model."),
        "loops": {"fit_loop": {}},
        "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_model_score": ONE}},
        "optimizer_states": [{}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": attributes(lr=0.1, opt=config, args=argparse.Namespace(a=1), out=pathlib.Path("a")),
    }
    checkpoint = read(tmp_path, value)
    assert list(checkpoint.tensors) == list(STATE)
    assert checkpoint.facts["meta"] == {"epoch": 3, "pytorch-lightning_version": "2.1.0", "hparams_name": "kwargs"}
    assert "hyper_parameters (lightning_fabric.utilities.data.AttributeDict)" in " ".join(checkpoint.notes)


def test_vainf_and_jfzhang95(tmp_path):
    vainf = {
        "cur_itrs": 30000, "model_state": STATE, "optimizer_state": {"state": {}}, "scheduler_state": {"last_epoch": 1},
        "best_score": np.float64(0.711),
    }  # fmt: skip
    checkpoint = read(tmp_path, vainf)
    assert checkpoint.facts == {"meta": {"cur_itrs": 30000, "best_score": 0.711}}
    jfzhang95 = {"epoch": 50, "state_dict": prefixed("module."), "optimizer": {}, "best_pred": np.float32(0.5)}
    checkpoint = formats.read(saved(tmp_path / "model_best.pth.tar", jfzhang95))
    assert list(checkpoint.tensors) == list(STATE)
    assert checkpoint.facts == {"meta": {"epoch": 50, "best_pred": 0.5}}


def test_scalars_of_numpy_and_what_is_not_plain(tmp_path):
    beside = {
        "int": np.int64(-3), "bool": np.bool_(True), "half": np.float16(0.5), "complex": np.complex64(1j), "set": {1, 2},
        "bytes": b"x", "tuple": (1, (2, None)), "list with a tensor": [ONE], "dict": {"x": 1, "tensor": ONE, 3: "three"},
        "device": collections.defaultdict(int, a=1), ("a", 1): "tuple key",
    }  # fmt: skip
    checkpoint = read(tmp_path, {"model": STATE} | beside)
    assert checkpoint.facts["meta"] == {
        "int": -3, "bool": True, "half": 0.5, "tuple": [1, [2, None]], "dict": {"x": 1},
    }  # fmt: skip


def test_plain_data_are_bounded(tmp_path):
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    shared = {f"{i}": i for i in range(3000)}
    value = {"model": STATE, "deep": deep, "epoch": 1, "text": "x" * 2_000_000, "shared": [shared] * 3000, "late": 2}
    began = time.monotonic()
    meta = read(tmp_path, value).facts["meta"]
    assert meta == {"epoch": 1}
    nested = {f"{i}": shared for i in range(3000)}
    meta = read(tmp_path, {"model": STATE, "nested": {f"{i}": nested for i in range(3000)}}).facts["meta"]
    assert sum(len(inner) for outer in meta["nested"].values() for inner in outer.values()) <= 20_000
    assert time.monotonic() - began < 10


# What must not happen.


def _program(module: str, name: str, *, call: bool = True) -> bytes:
    """A pickle of {"w": array, "x": module.name("true")}."""
    made = f"c{module}\n{name}\n".encode() + (b"(X\x04\0\0\0truetR" if call else b"")
    return b"\x80\x02}(X\x01\0\0\0w" + pickle.dumps(ONE, 2)[2:-1] + b"X\x01\0\0\0x" + made + b"u."


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("os", "system", "os.system"),
        ("posix", "system", "posix.system"),
        ("nt", "system", "nt.system"),
        ("subprocess", "Popen", "subprocess.Popen"),
        ("builtins", "eval", "builtins.eval"),
        ("__builtin__", "execfile", "builtins.execfile"),
        ("importlib", "import_module", "importlib.import_module"),
        ("runpy", "_run_code", "runpy._run_code"),
        ("os.path", "join", "os.path.join"),
        ("torch.hub", "load", "torch.hub.load"),
        ("torch.nn", "Module", "torch.nn.Module"),
        ("numpy.lib.npyio", "NpzFile", "numpy.lib.npyio.NpzFile"),
        ("pip._internal", "main", "pip._internal.main"),
        ("cloudpickle.cloudpickle", "_make_function", "cloudpickle.cloudpickle._make_function"),
        ("pandas", "eval", "pandas.eval"),
        ("x y", "Z", "x y.Z"),
        ("", "Z", ".Z"),
        ("a..b", "Z", "a..b.Z"),
        ("__main__", "train", "__main__.train"),
    ],
)
def test_names_that_are_refused_aloud(tmp_path, module, name, said):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", _program(module, name))
    with pytest.raises(FormatError) as caught:
        formats.read(tmp_path / "x.pth")
    assert f"refuses to call {said}" in str(caught.value)


@pytest.mark.parametrize("module", ["antigravity_of_ours", "__main__", "mmcv.utils.config"])
def test_a_class_of_a_script_is_neither_imported_nor_made(tmp_path, monkeypatch, module):
    imported = []

    class Finder:
        def find_spec(self, name: str, *_: Any) -> None:
            imported.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    for call in (True, False):
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            archive.writestr("archive/data.pkl", _program(module, "Config", call=call))
        checkpoint = formats.read(tmp_path / "x.pth")
        assert list(checkpoint.tensors) == ["w"]
        assert "x (" in checkpoint.notes[0]
    assert not [name for name in imported if name.split(".")[0] in {"antigravity_of_ours", "mmcv"}]


def test_an_inert_value_swallows_state_and_items_and_keeps_none(tmp_path):
    tensor = pickle.dumps(ONE, 2)[2:-1]
    thing = b"cmmcv.config\nConfig\n)\x81"
    for what in (
        b"}X\x01\0\0\0aK\x01sb",  # BUILD
        b"X\x01\0\0\0aK\x01s",  # SETITEM
        b"K\x01a",  # APPEND
        b"(K\x01K\x02e",  # APPENDS
        b"}(X\x01\0\0\0aK\x01u" + b"N\x86b",  # BUILD with a tuple of a dictionary and slots
    ):
        program = b"\x80\x02}(X\x01\0\0\0w" + tensor + b"X\x01\0\0\0x" + thing + what + b"u."
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            archive.writestr("archive/data.pkl", program)
        checkpoint = formats.read(tmp_path / "x.pth")
        assert list(checkpoint.tensors) == ["w"]
        assert checkpoint.facts == {}


def test_a_method_of_a_script_is_no_way_round(tmp_path):
    of = b"cbuiltins\ngetattr\n(cmmcv.config\nConfig\nX\x04\0\0\0loadtR"
    for program, said in (
        (b"\x80\x02" + of + b"(X\x01\0\0\0atR.", "it calls a Inert"),
        (b"\x80\x02cbuiltins\ngetattr\n(cmmcv.config\nConfig\ncbuiltins\nint\ntR.", "builtins.getattr"),
        (b"\x80\x02cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x04\0\0\0loadtR.", "builtins.getattr"),
        (b"\x80\x02cbuiltins\ngetattr\n(" + of + b"X\x04\0\0\0loadtR.", "builtins.getattr"),
    ):
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            archive.writestr("archive/data.pkl", program)
        with pytest.raises(FormatError, match=said):
            formats.read(tmp_path / "x.pth")


def test_a_tar_archive_is_named(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "x.pth", "w") as archive:
        archive.add(__file__, "sys_info")
    with pytest.raises(FormatError, match="it is a tar archive"):
        formats.read(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.bin", "x.pth.tar", "x.pt"])
def test_suffixes_of_torch(tmp_path, name):
    formats.write(tmp_path / name, STATE)
    assert formats.read(tmp_path / name).format == formats.format_of_suffix(name) == "torch"


TORCH = """
import argparse, torch
from torch.optim.swa_utils import AveragedModel
folder = sys.argv[1] + "/"
def data(t): return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4).half(), torch.nn.Linear(2, 2).bfloat16())
state = net.state_dict()
half = torch.nn.DataParallel(net).state_dict()
torch.save({"epoch": 1, "state_dict": half, "best_pred": 0.5}, folder + "parallel.pth.tar")
torch.save({"epoch": 1, "state_dict": half, "best_pred": 0.5}, folder + "old.pth.tar", _use_new_zipfile_serialization=False)
torch.save({"model_state": state, "opts": argparse.Namespace(a=1), "dtype": torch.float16, "device": torch.device("cpu"),
            "rng_state": torch.get_rng_state(), "best_score": 0.5, "epoch": 1}, folder + "plain.pth")
torch.save(AveragedModel(net).state_dict(), folder + "averaged.pth")
print(json.dumps({k: [str(t.dtype).removeprefix("torch."), list(t.shape), digest(data(t))] for k, t in state.items()}))
"""


def test_what_torch_itself_saves(tmp_path):
    state = run_framework("torch", TORCH, tmp_path)
    for name in ("parallel.pth.tar", "old.pth.tar", "plain.pth", "averaged.pth"):
        checkpoint = formats.read(tmp_path / name)
        assert table(checkpoint.tensors) == state, name
        if name != "averaged.pth":
            assert checkpoint.facts["meta"]["epoch"] == 1
            assert 0.5 in checkpoint.facts["meta"].values()
