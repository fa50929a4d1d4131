"""Which module of a live model is which node, and the values of its modules until they are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.core import ops, reference
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import Weights
from deeplabzoo.errors import GraphError, unknown
from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.hooks import LiveModel
from deeplabzoo.parity.trace import NodeRow, node_row
from deeplabzoo.weights_converter.formats import shown
from deeplabzoo.weights_converter.keras_paths import keras_node_name
from deeplabzoo.weights_converter.layouts import Entry

RETURNED = "what the model returns"
"""In the place of a module's path: an output of the network."""

_LISTED = 6


class Store:
    """What modules gave, in files of a folder, so that memory holds one value at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self.calls: dict[str, int] = {}
        self.no_tensor: list[str] = []

    def take(self, key: str, value: Any) -> None:
        """Keep the first value of a key and count the others."""
        self.calls[key] = self.calls.get(key, 0) + 1
        if not isinstance(value, np.ndarray):
            self.no_tensor.append(key)
        elif key not in self._files:
            self._files[key] = self._folder / f"{len(self._files)}.npy"
            np.save(self._files[key], value)

    def holds(self, key: str, value: np.ndarray) -> bool:
        """Whether the value that is kept of a key is this one."""
        return np.array_equal(np.load(self._files[key], mmap_mode="r"), value)

    def rows(
        self, graph: Graph, weights: Weights, image: np.ndarray, paths: Mapping[str, str], side: str
    ) -> Iterator[NodeRow]:
        """Compare the values with the referee's, in the order of the graph.

        Args:
            graph: the network.
            weights: its canonical weights.
            image: N, C, H, W, as the model took it.
            paths: key of the value of each node that has one.
            side: who made the values.
        """
        for name, truth in reference.trace(graph, weights, image):
            if name in paths:
                file = self._files[paths[name]]
                yield node_row(graph.by_name[name], side, np.load(file, mmap_mode="r"), truth)
                file.unlink()


class Match:
    """Nodes by the paths of the modules that give their values.

    Args:
        graph: the network.
        live: the model.
        entries: the table of the model's layout.
        names: nodes of more modules, by path; they go before what the table says.
        own_names: whether modules without tensors have the names of our nodes too.

    Raises:
        GraphError: a path or a node in `names` that does not exist.
    """

    def __init__(
        self, graph: Graph, live: LiveModel, entries: Sequence[Entry], names: Mapping[str, str], *, own_names: bool
    ) -> None:
        self._graph, self._live = graph, live
        place = {node.name: n for n, node in enumerate(graph.nodes)}
        self.watched: dict[str, str] = {}
        """Node by path."""
        if own_names:
            self.watched = {path: node for path in live.modules if (node := keras_node_name(path)) in place}
        for entry in entries:
            path, node = entry.foreign.rpartition(live.separator)[0], entry.canonical.rpartition(".")[0]
            # A module with the tensors of several nodes, a separable convolution, gives the value of the last.
            if path in live.modules and place.get(node, -1) > place.get(self.watched.get(path, ""), -1):
                self.watched[path] = node
        for path, node in names.items():
            if path not in live.modules:
                raise GraphError(unknown("module", path, live.modules))
            if node not in place:
                raise GraphError(unknown("node", node, place))
            self.watched = {other: told for other, told in self.watched.items() if told != node}
            self.watched[path] = node
        self.paths: dict[str, str] = {}
        """Key in the store, of each node that was seen."""
        self.outputs: list[str] = []
        self.notes: list[str] = []

    def settle(self, store: Store, returned: Any, case: Case) -> None:
        """Keep what was called once, add what the model returned, and note the rest.

        Raises:
            GraphError: the model returned no scores.
        """
        never = [path for path in self.watched if path not in store.calls]
        several = [path for path in self.watched if store.calls.get(path, 0) > 1]
        for paths, what in (
            (never, "the model never calls"),
            ([f"{path} ({store.calls[path]} times)" for path in several], "left out, because called more than once:"),
            (store.no_tensor, "left out, because they give no single tensor:"),
        ):
            self.notes += [f"{what} {listed(paths)}"] if paths else []
        out = {*never, *several, *store.no_tensor}
        self.paths = {node: path for path, node in self.watched.items() if path not in out}
        self._add_outputs(store, returned, case)
        unseen = [node.name for node in self._graph.nodes if node.parameters() and node.name not in self.paths]
        self.notes += [f"not judged by themselves: {listed(unseen)}"] if unseen else []

    def _add_outputs(self, store: Store, returned: Any, case: Case) -> None:
        shapes = self._graph.shapes(case.height, case.width, case.batch)
        values = _by_output([name for name, _ in self._graph.outputs], returned)
        for name, node in self._graph.outputs:
            if name not in values:
                continue
            before = self._graph.by_name[node].inputs[:1]
            if (
                isinstance(self._graph.by_name[node].op, ops.Resize)
                and values[name].shape != shapes[node]
                and values[name].shape == shapes[before[0]]
            ):
                self.notes.append(f"the model returns {before[0]}, before {node}, which is not judged")
                (node,) = before
            self.outputs.append(node)
            # A module may give the node and the model change it before it returns it.
            if node not in self.paths or not store.holds(self.paths[node], values[name]):
                key = f"{RETURNED} as {name}"
                store.take(key, values[name])
                self.paths[node] = key

    def described(self) -> dict[str, str]:
        """Path and class of the module of each node."""
        modules = self._live.modules
        return {
            node: f"{path}, {type(modules[path]).__name__}" if path in modules else path
            for node, path in self.paths.items()
        }

    def unmatched(self) -> tuple[str, ...]:
        """Modules that are no node, those that hold others left out."""
        return tuple(path for path in self._live.leaves if path not in self.watched)


def listed(names: Sequence[str]) -> str:
    """A few names and the number of the rest, with nothing that a terminal would take for more than text."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(shown(name) for name in names[:_LISTED]) + more


def _by_output(names: list[str], returned: Any) -> dict[str, np.ndarray]:
    """The arrays that a model returns by the name of the output: itself, by their names, or in their order.

    The first output is also what is called `logits`, else the first map that is not called as another output.

    Raises:
        GraphError: the first output is not among them, without which nothing was judged.
    """
    given: dict[str, Any] = {}
    if isinstance(returned, np.ndarray):
        given = {names[0]: returned}
    elif isinstance(returned, Mapping):
        given = dict(returned)
    elif isinstance(returned, list):
        given = dict(zip(names, returned, strict=False))
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    maps = [value for name, value in arrays.items() if name not in (*names, "aux") and value.ndim == 4]
    first = arrays.get(names[0], arrays.get("logits", maps[0] if maps else None))
    if first is None:
        raise GraphError(
            f"the model returns {_told(returned)}: expected an array, or `{names[0]}` or `logits` with one; wrap it in "
            "a model whose call returns its scores"
        )
    return {**{name: value for name, value in arrays.items() if name in names}, names[0]: first}


def _told(returned: Any) -> str:
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return (
            f"{kind} of {listed([f'{name} ({type(value).__name__})' for name, value in returned.items()]) or 'nothing'}"
        )
    if isinstance(returned, list):
        return f"{kind} of {listed([type(value).__name__ for value in returned]) or 'nothing'}"
    return kind
