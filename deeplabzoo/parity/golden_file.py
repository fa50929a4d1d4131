"""A golden: what every side made of seeded inputs, kept so small that it can lie in a repository.

Outputs are kept on a grid of points and, whole, by digest; gradients by norm and sum. One safetensors file holds the
numbers as tensors and the rest as JSON in its metadata. A golden may come from a stranger: whatever it claims is
checked before it is used, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo._version import __version__
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import GraphError, SpecError
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.parity import claims
from deeplabzoo.parity.cases import REFEREE, Case, case_of, output_shapes
from deeplabzoo.parity.sketch import Gradients, Grid, Output, digest_of, gradient_sizes, grid_of
from deeplabzoo.weights_converter.formats import Flaw, safetensors, shown
from deeplabzoo.weights_converter.formats._guard import existing_file, reading

FORMAT_VERSION = 1
_KEY, _SEAL = "deeplabzoo.golden", "deeplabzoo.golden.sha256"
_FROM = "`deeplabzoo golden record`"

_MOST_BYTES = 64 * 2**20
_MOST_INPUTS, _MOST_RECORDS = 16, 64
_MOST_PARAMETERS, _MOST_VALUES = 2**28, 2**27
"""Of a network and of each of its maps: what is replayed must not take all the memory of who replays it."""


@dataclass(frozen=True)
class Input:
    """A seeded input.

    Attributes:
        case: batch and size.
        digest: of images and labels, as `sketch.digest_of`.
        grids: rows and columns of each output that are kept: those of `sketch.grid_of`.
    """

    case: Case
    digest: str
    grids: Mapping[str, Grid]


@dataclass(frozen=True)
class Record:
    """One side in one dtype.

    Attributes:
        name: of the backend; `cases.REFEREE` is the truth.
        dtype: it computed in.
        versions: of its packages.
        outputs: for each input, by name.
        gradients: for each input; empty where there are none.
        left_out: why there are none.
    """

    name: str
    dtype: str
    versions: Mapping[str, str]
    outputs: tuple[Mapping[str, Output], ...] = field(repr=False)
    gradients: tuple[Gradients, ...] = field(default=(), repr=False)
    left_out: str | None = None


@dataclass(frozen=True)
class Golden:
    """A recorded golden.

    Attributes:
        model: title.
        spec: the architecture.
        graph_digest: SHA-256 of its graph.
        weights_digest: SHA-256 of the canonical weights, which are not kept.
        weights: where they come from: `seed 0`, a file's name, `given weights`.
        weights_seed: their seed; None where they must be given again.
        seed: of images and labels.
        environment: what recorded it: `deeplabzoo`, `machine`, `processor`, `system`, `python`, `numpy`.
        inputs: the inputs.
        records: the truth first, then every backend.
    """

    model: str
    spec: ArchSpec
    graph_digest: str
    weights_digest: str
    weights: str
    weights_seed: int | None
    seed: int
    environment: Mapping[str, str]
    inputs: tuple[Input, ...] = field(repr=False)
    records: tuple[Record, ...] = field(repr=False)

    @property
    def truth(self) -> Record:
        """The referee's record."""
        return self.records[0]

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends that were recorded."""
        return tuple(dict.fromkeys(record.name for record in self.records[1:]))

    def find(self, name: str, dtype: str) -> Record | None:
        """The record of a backend in a dtype; None where there is none."""
        return next((r for r in self.records[1:] if (r.name, r.dtype) == (name, dtype)), None)

    def dtypes(self, name: str) -> tuple[str, ...]:
        """In which a backend was recorded; for others, all that were recorded."""
        own = [record.dtype for record in self.records[1:] if record.name == name]
        return tuple(dict.fromkeys(own or [record.dtype for record in self.records[1:]]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: all but the numbers on the grids and of the gradients."""
        return {
            "format": FORMAT_VERSION,
            "model": self.model,
            "spec": self.spec.to_dict(),
            "graph_sha256": self.graph_digest,
            "weights_sha256": self.weights_digest,
            "weights": self.weights,
            "weights_seed": self.weights_seed,
            "seed": self.seed,
            "environment": dict(self.environment),
            "inputs": [
                {
                    "batch": one.case.batch,
                    "height": one.case.height,
                    "width": one.case.width,
                    "sha256": one.digest,
                    "grids": {name: [list(axis) for axis in grid] for name, grid in one.grids.items()},
                }
                for one in self.inputs
            ],
            "records": [
                {
                    "name": record.name,
                    "dtype": record.dtype,
                    "versions": dict(record.versions),
                    "left_out": record.left_out,
                    "outputs": [
                        {name: {"sha256": made.digest, "labels_sha256": made.labels} for name, made in outputs.items()}
                        for outputs in record.outputs
                    ],
                    "losses": [made.loss for made in record.gradients],
                }
                for record in self.records
            ],
        }

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the golden; nothing half-written is ever left under the name.

        Raises:
            OutputError: the file exists (without `force`), or can't be written.
        """
        path = Path(path)
        check_output(path, force=force)
        text, arrays = json.dumps(self.to_dict()), self._arrays()
        with beside_then_rename(path, force=force) as beside:
            safetensors.write(beside, arrays, {_KEY: text, _SEAL: _seal(text, arrays)})

    @classmethod
    def load(cls, path: str | Path) -> Golden:
        """Read a golden.

        Raises:
            FormatError: no golden, a damaged one, one of another format version, or one whose spec or graph is another
                in this version.
        """
        path = Path(path)
        with reading(path, "golden"):
            if path.is_dir():
                raise Flaw(f"a folder; expected a golden of {_FROM}")
            existing_file(path)
            if path.stat().st_size > _MOST_BYTES:
                raise Flaw(f"{path.stat().st_size} bytes: a golden takes at most {_MOST_BYTES}; give one of {_FROM}")
            if not safetensors.sniff(path):
                raise Flaw(f"not a golden: expected a file of {_FROM}")
            stored = safetensors.read(path)
            text = stored.metadata.get(_KEY)
            if text is None:
                raise Flaw(f"safetensors, but not a golden: expected a file of {_FROM}")
            data = json.loads(text)
            _check_version(data)
            if stored.metadata.get(_SEAL) != _seal(text, stored.tensors):
                raise Flaw("damaged: its numbers are not those that were recorded; get the file again")
            return _golden(data, stored.tensors)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for r, record in enumerate(self.records):
            for n, outputs in enumerate(record.outputs):
                arrays.update({_name(r, n, name): made.grid for name, made in outputs.items()})
            for n, made in enumerate(record.gradients):
                arrays[_name(r, n, "gradients")] = np.stack([made.norms, made.sums])
        return arrays


def check_limits(graph: Graph, sizes: Sequence[Sequence[int]]) -> None:
    """`GraphError` for what no golden may hold: too large a network, or too many or too large inputs.

    Args:
        graph: the network.
        sizes: batch, height and width of each input.
    """
    parameters = sum(math.prod(shape) for shape in graph.parameters().values())
    if parameters > _MOST_PARAMETERS:
        raise GraphError(f"a network of {parameters} parameters: a golden holds at most {_MOST_PARAMETERS}")
    if not 0 < len(sizes) <= _MOST_INPUTS:
        raise GraphError(f"{len(sizes)} inputs: a golden holds 1 to {_MOST_INPUTS}")
    for batch, height, width in sizes:
        values = {name: math.prod(shape) for name, shape in graph.shapes(height, width, batch).items()}
        largest = max(values, key=lambda name: values[name])
        if values[largest] > _MOST_VALUES:
            raise GraphError(
                f"input {batch}x{height}x{width}: {largest} makes {values[largest]} values, a golden allows "
                f"{_MOST_VALUES}; take a smaller size"
            )


def _name(record: int, place: int, what: str) -> str:
    return f"record{record}.input{place}.{what}"


def _seal(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name in sorted(arrays):
        total.update(f"\n{name} {digest_of([arrays[name]])}".encode(errors="surrogatepass"))
    return total.hexdigest()


def _check_version(data: Any) -> None:
    table = claims.table(data, "the record")
    if table.get("format") != FORMAT_VERSION:
        environment = table.get("environment")
        writer = shown(environment.get("deeplabzoo")) if isinstance(environment, dict) else "another version"
        raise Flaw(
            f"a golden of format {shown(table.get('format'))}, written by deeplabzoo {writer}: this version "
            f"({__version__}) reads format {FORMAT_VERSION}; record it again with {_FROM}, or use that version"
        )


def _golden(data: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Golden:
    """The golden that was read, everything in it checked against the graph of its spec."""
    environment = claims.words_by_name(data["environment"], "environment")
    spec, graph = _network(data, environment.get("deeplabzoo", "?"))
    try:
        sizes = [
            [claims.whole(one[key], f"inputs: {key}", 1) for key in ("batch", "height", "width")]
            for one in claims.items(data["inputs"], "inputs", _MOST_INPUTS)
        ]
        check_limits(graph, sizes)
        cases = [case_of(graph, *size) for size in sizes]
    except GraphError as error:
        raise Flaw(str(error)) from None
    inputs = tuple(_input(graph, case, one) for case, one in zip(cases, data["inputs"], strict=True))
    entries = claims.items(data["records"], "records", _MOST_RECORDS)
    records = tuple(_record(graph, inputs, n, entry, arrays) for n, entry in enumerate(entries))
    keys = [(record.name, record.dtype) for record in records]
    if len(keys) < 2 or keys[0] != (REFEREE, "float64") or len(set(keys)) != len(keys):
        raise Flaw(f"records: expected {REFEREE} first, then every backend and dtype once, at least one")
    expected = Golden("", spec, "", "", "", None, 0, {}, inputs, records)._arrays().keys()
    if strange := sorted(arrays.keys() ^ expected):
        raise Flaw(f"tensor {shown(strange[0])!r} is missing or not expected")
    seed = data["weights_seed"]
    return Golden(
        claims.words(data["model"], "model"),
        spec,
        claims.digest(data["graph_sha256"], "graph_sha256"),
        claims.digest(data["weights_sha256"], "weights_sha256"),
        claims.words(data["weights"], "weights"),
        None if seed is None else claims.whole(seed, "weights_seed", 0),
        claims.whole(data["seed"], "seed", 0),
        environment,
        inputs,
        records,
    )


def _network(data: Mapping[str, Any], writer: str) -> tuple[ArchSpec, Graph]:
    try:
        spec = ArchSpec.from_dict(claims.table(data["spec"], "spec"))
        graph = build_graph(spec)
    except (SpecError, GraphError) as error:
        raise Flaw(
            f"this version ({__version__}) can't read its spec, written by deeplabzoo {shown(writer)}: {error}; record "
            f"it again with {_FROM}, or use that version"
        ) from None
    then, now = claims.digest(data["graph_sha256"], "graph_sha256"), graph.digest()
    if then != now:
        raise Flaw(
            f"its spec makes another graph than when it was recorded: SHA-256 {then} then (deeplabzoo {shown(writer)}), "
            f"{now} now ({__version__}): the spec in it or the builder of the graph has changed; record it again with "
            f"{_FROM} if that is meant"
        )
    if spec.output.values == "labels":
        raise Flaw("its network returns labels, which have no values to compare")
    return spec, graph


def _input(graph: Graph, case: Case, entry: Mapping[str, Any]) -> Input:
    grids = {}
    for name, shape in output_shapes(graph, case).items():
        axes = claims.items(claims.table(entry["grids"], "grids")[name], "grids", 2)
        if len(axes) != 2:
            raise Flaw(f"grid of {name}: {len(axes)} lists, expected rows and columns")
        grids[name] = grid_of(shape)
        for axis, places in zip(axes, grids[name], strict=True):
            # A grid of fewer places would pass what differs at the others.
            if axis != list(places):
                raise Flaw(f"grid of {name}, {case}: places {shown(axis)}, expected {shown(places)}; record again")
    return Input(case, claims.digest(entry["sha256"], "inputs: sha256"), grids)


def _record(graph: Graph, inputs: Sequence[Input], number: int, entry: Any, arrays: Mapping[str, np.ndarray]) -> Record:
    table = claims.table(entry, "records")
    name, dtype = claims.words(table["name"], "name"), table["dtype"]
    if dtype not in ("float64", "float32"):
        raise Flaw(f"dtype {shown(dtype)} of {shown(name)}: expected float64 or float32")
    stored = claims.items(table["outputs"], "outputs", _MOST_INPUTS)
    losses = [claims.number(value, "loss") for value in claims.items(table["losses"], "losses", _MOST_INPUTS)]
    if len(stored) != len(inputs) or len(losses) not in (0, len(inputs)):
        raise Flaw(f"record of {shown(name)}: expected results for {len(inputs)} inputs")
    outputs, gradients = [], []
    for n, (one, made) in enumerate(zip(inputs, stored, strict=True)):
        shapes = output_shapes(graph, one.case)
        outputs.append(
            {
                output: Output(
                    _array(arrays, _name(number, n, output), dtype, (*shapes[output][:2], len(rows), len(columns))),
                    claims.digest(made[output]["sha256"], "sha256"),
                    claims.digest(made[output]["labels_sha256"], "labels_sha256"),
                )
                for output, (rows, columns) in one.grids.items()
            }
        )
    for n, loss in enumerate(losses):
        pair = _array(arrays, _name(number, n, "gradients"), "float64", (2, len(gradient_sizes(graph, inputs[n].case))))
        if (pair[0] < 0).any():
            raise Flaw(f"record of {shown(name)}: a norm below zero")
        gradients.append(Gradients(loss, pair[0], pair[1]))
    left_out = table["left_out"]
    return Record(
        name,
        dtype,
        claims.words_by_name(table["versions"], "versions"),
        tuple(outputs),
        tuple(gradients),
        None if left_out is None else claims.words(left_out, "left_out"),
    )


def _array(arrays: Mapping[str, np.ndarray], name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays:
        raise Flaw(f"tensor {name!r} is missing")
    array = np.array(arrays[name])  # once: the mapping is lazy; a copy stays when the file goes
    if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
        raise Flaw(f"tensor {name!r} is {array.dtype} {array.shape}: expected finite {dtype} {shape}")
    return array
