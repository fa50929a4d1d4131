"""Every backend has the same files with the same functions; read as text, so that no framework is needed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import deeplabzoo.backends
from deeplabzoo.backends import FOLDERS, NAMES, Backend, default_backend, resolve
from deeplabzoo.errors import BackendError

HOME = Path(deeplabzoo.backends.__file__).parent
MODULES = {"__init__", "build", "flags", "ops", "run", "weights"}
FUNCTIONS = {
    "build": {"build"},
    "ops": {"make_layer"},
    "run": {"configure", "device_name", "devices", "forward"},
    "weights": {"load_weights", "read_weights"},
}
TRAIN = {"gradients", "train"}
"""Functions of `train`, which those have that can."""
MORE_ARGUMENTS = {("keras", "make_layer"): ["name", "dtype"], ("onnx", "make_layer"): ["name", "inputs", "dtype"]}
"""A Keras layer takes its name and its float type when it is made, nodes of ONNX the names of their inputs too."""

MORE_FLAGS = {"keras": {"ENGINES"}}
"""Only Keras runs on several frameworks."""


def tree(folder, module):
    return ast.parse((HOME / folder / f"{module}.py").read_text(encoding="utf-8"))


def functions(folder, module):
    return {
        n.name: n for n in tree(folder, module).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
    }


def constants(folder):
    return {n.targets[0].id for n in tree(folder, "flags").body if isinstance(n, ast.Assign)}


def test_folders_are_the_backends():
    found = {p.name for p in HOME.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert found == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_same_modules(folder):
    found = {p.stem for p in (HOME / folder).glob("*.py")}
    learns = {"train"} if Backend(folder, folder).flags.GRADIENTS else set()
    assert {name for name in found if not name.startswith("_") or name == "__init__"} == MODULES | learns


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if Backend(folder, folder).flags.GRADIENTS])
def test_same_training(folder):
    made, model = functions(folder, "train"), functions("torch", "train")
    assert set(made) == set(model) == TRAIN
    for name in TRAIN:
        assert [a.arg for a in made[name].args.args] == [a.arg for a in model[name].args.args], name


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("module", FUNCTIONS)
def test_same_functions(folder, module):
    made = functions(folder, module)
    assert FUNCTIONS[module] <= set(made)
    for name in FUNCTIONS[module]:
        ours, model = made[name].args, functions("torch", module)[name].args
        for kind in ("posonlyargs", "args", "kwonlyargs"):
            more = MORE_ARGUMENTS.get((folder, name), []) if kind == "kwonlyargs" else []
            assert [a.arg for a in getattr(ours, kind)] == [a.arg for a in getattr(model, kind)] + more, name
        shared = len(model.kw_defaults)
        assert [ast.dump(d) for d in ours.kw_defaults[:shared]] == [ast.dump(d) for d in model.kw_defaults]


@pytest.mark.parametrize("folder", FOLDERS)
def test_same_flags(folder):
    assert constants(folder) - MORE_FLAGS.get(folder, set()) == constants("torch")
    flags = Backend(folder, folder).flags
    assert {name for name in constants(folder) if isinstance(getattr(flags, name), bool)} == {
        "DYNAMIC_SIZE", "GRADIENTS", "GPU", "COMPILE",
    }  # fmt: skip
    imported = [n for n in ast.walk(tree(folder, "flags")) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert all(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in imported)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_backend_knows_another(folder):
    others = {name for name in ("torch", "paddle", "tensorflow", "jax", "keras", "onnx") if name != folder}
    for module in MODULES - {"__init__"}:
        for node in ast.walk(tree(folder, module)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in others, (folder, module, name)
                assert not name.startswith(tuple(f"deeplabzoo.backends.{other}" for other in others))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_op_has_a_layer(folder):
    """The op classes that a backend's `make_layer` names are all of them but the input."""
    from deeplabzoo.core.ops import OPS

    named = {
        n.attr for n in ast.walk(tree(folder, "ops")) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "ops"
    }
    expected = {op.__name__ for op in OPS.values()} - {"Input"}
    if folder == "keras":  # its build makes the input itself
        named |= {n.attr for n in ast.walk(tree(folder, "build")) if isinstance(n, ast.Attribute)}
    assert expected <= named


def test_names():
    assert [resolve(name).name for name in NAMES] == [
        "torch", "paddle", "keras/tensorflow", "keras/tensorflow", "keras/jax", "keras/torch", "onnx",
    ]  # fmt: skip
    for wrong, near in (("pytorch", "torch"), ("kears", "keras"), ("keras/tensorfow", "keras/tensorflow")):
        with pytest.raises(BackendError, match=f"unknown backend '{wrong}': expected one of .*did you mean '{near}'"):
            resolve(wrong)
    with pytest.raises(BackendError, match="expected one of torch, paddle, keras"):
        resolve("")


@pytest.mark.parametrize(
    ("name", "gone", "needs", "install"),
    [
        ("torch", {"torch"}, "torch", "deeplabzoo[torch]"),
        ("paddle", {"paddle"}, "paddle", "deeplabzoo[paddle]"),
        ("keras", {"keras", "tensorflow"}, "keras and tensorflow", "deeplabzoo[keras]"),
        ("keras/jax", {"jax"}, "jax", "deeplabzoo[jax]"),
        ("keras/torch", {"keras"}, "keras", "deeplabzoo[torch,keras]"),
    ],
)
def test_a_missing_backend_names_the_extra(monkeypatch, name, gone, needs, install):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module in gone else real(module))
    backend = resolve(name)
    with pytest.raises(BackendError) as caught:
        backend.require()
    message = str(caught.value)
    assert f"needs {needs}, not installed here" in message
    assert f'pip install "{install}"' in message


def test_default_backend(monkeypatch):
    import importlib.util

    present = {"torch", "paddle", "keras", "tensorflow", "jax"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module if module in present else None)
    for name, gone in (
        ("torch", "torch"),
        ("paddle", "paddle"),
        ("keras/tensorflow", "tensorflow"),
        ("keras/jax", "jax"),
    ):
        assert default_backend().name == name
        present.discard(gone)
    with pytest.raises(BackendError, match="no backend is installed here"):
        default_backend()


@pytest.mark.parametrize(
    ("name", "loaded", "refused"),
    [
        ("torch", "tensorflow", True),
        ("torch", "paddle", True),
        ("paddle", "tensorflow", True),
        ("paddle", "torch", True),
        ("keras", "torch", True),
        ("keras", "paddle", True),
        ("keras/torch", "tensorflow", True),
        ("torch", "jax", False),
        ("torch", "torch", False),
        ("keras/jax", "jax", False),
    ],
)
def test_refused_beside_another_framework(monkeypatch, name, loaded, refused):
    import sys
    from types import ModuleType

    monkeypatch.setattr(Backend, "missing", lambda self: ())
    monkeypatch.setenv("KERAS_BACKEND", "")
    for framework in ("torch", "paddle", "tensorflow", "keras"):
        monkeypatch.delitem(sys.modules, framework, raising=False)
    monkeypatch.setitem(sys.modules, loaded, ModuleType(loaded))
    if not refused:
        resolve(name).enter()
        return
    with pytest.raises(BackendError, match=f"can't be loaded beside {loaded}") as caught:
        resolve(name).enter()
    assert "deeplabzoo.run" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_beside_keras_on_another_backend(monkeypatch):
    import sys
    from types import ModuleType, SimpleNamespace

    keras = ModuleType("keras")
    keras.backend = SimpleNamespace(backend=lambda: "jax")
    monkeypatch.setattr(Backend, "missing", lambda self: ())
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for framework in ("torch", "paddle", "tensorflow"):
        monkeypatch.delitem(sys.modules, framework, raising=False)
    monkeypatch.setitem(sys.modules, "keras", keras)
    with pytest.raises(BackendError, match=r"Keras already runs on jax .* backend='keras/jax'"):
        resolve("keras").enter()
    resolve("keras/jax").enter()
