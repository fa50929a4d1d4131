"""TensorFlow Lite: the constants of a network in single or half precision, and its operators in their order.

Source of the numbers: tensorflow/lite/schema/schema.fbs (Apache-2.0). A `.tflite` is a network made ready to run:
batch norms are folded into the convolutions, and names are what the converter left of them, so the operators are
passed on too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._flatbuffer import FlatBuffer, Table
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown

NAME = "tflite"
_MAGIC = b"TFL3"
_MOST_AXES = 32
_TYPES = (
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64",
    "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4",
)  # fmt: skip
_PLAIN = ("float32", "float16", "bfloat16", "float64", "int32", "int64", "bool")
_PADDINGS = ("SAME", "VALID")
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
_OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 21: "RELU6", 22: "RESHAPE",
    23: "RESIZE_BILINEAR", 25: "SOFTMAX", 34: "PAD", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 40: "MEAN",
    41: "SUB", 56: "ARG_MAX", 67: "TRANSPOSE_CONV", 97: "RESIZE_NEAREST_NEIGHBOR", 117: "HARD_SWISH",
}  # fmt: skip
_CUSTOM = 32

# Option -> fields of an operator's table of options, each a number and its default.
_SAME = {"padding": ((0, 0),)}
_OPTIONS: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "CONV_2D": {**_SAME, "stride": ((2, 0), (1, 0)), "dilation": ((5, 1), (4, 1)), "activation": ((3, 0),)},
    "DEPTHWISE_CONV_2D": {
        **_SAME, "stride": ((2, 0), (1, 0)), "dilation": ((6, 1), (5, 1)), "multiplier": ((3, 0),),
        "activation": ((4, 0),),
    },
    "AVERAGE_POOL_2D": {**_SAME, "stride": ((2, 0), (1, 0)), "filter": ((4, 0), (3, 0)), "activation": ((5, 0),)},
    "CONCATENATION": {"axis": ((0, 0),), "activation": ((1, 0),)},
    "ADD": {"activation": ((0, 0),)},
    "RESIZE_BILINEAR": {"align_corners": ((2, 0),), "half_pixel_centers": ((3, 0),)},
    "RESIZE_NEAREST_NEIGHBOR": {"align_corners": ((0, 0),), "half_pixel_centers": ((1, 0),)},
}  # fmt: skip
_OPTIONS |= {"MAX_POOL_2D": _OPTIONS["AVERAGE_POOL_2D"], "MUL": _OPTIONS["ADD"], "SUB": _OPTIONS["ADD"]}
_WORDS = {"padding": _PADDINGS, "activation": _ACTIVATIONS}
_BYTES = ("padding", "activation", "align_corners", "half_pixel_centers")


@dataclasses.dataclass
class _Tensor:
    """What a subgraph says of one tensor, its values (where it is a constant) by their place in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    size: int
    quantised: bool

    def described(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


def sniff(path: Path) -> bool:
    """Tell whether `path` has TensorFlow Lite's mark."""
    return head(path, 8)[4:] == _MAGIC


def read(path: Path) -> Checkpoint:
    """Read the constants of a network, those of its first subgraph in their own order.

    Kernels are as TensorFlow Lite has them: O, H, W, I, and 1, H, W, C * M where depthwise. Where a name is missing or
    used twice, `#` and the tensor's number are added.

    `facts["operators"]` has the operators in the order of execution: `op`, the names of `inputs` (None where an
    optional one is left out) and `outputs`, and, where the operator has them, `padding`, `stride`, `dilation`,
    `filter` (height, width), `multiplier`, `activation`, `axis`, `align_corners`, `half_pixel_centers`.
    `facts["inputs"]` and `facts["outputs"]` have name, shape and dtype.

    Raises:
        FormatError: damaged, quantised or sparse weights, or no constants; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        model = FlatBuffer(file.piece(0, file.size).data).root()
        subgraphs = model.tables(2)
        if not subgraphs:
            raise Flaw("holds no network")
        buffers = [_buffer(table, file.size) for table in model.tables(4)]
        tensors = [_tensor(table, buffers) for table in subgraphs[0].tables(0)]
        _make_unique(tensors)
        constants = {tensor.name: tensor for tensor in tensors if tensor.size}
        total = sum(tensor.size for tensor in constants.values())
        if total > 2 * file.size:
            raise Flaw(f"its constants take {total} bytes, the file {file.size}: they overlap")
        if not constants:
            raise Flaw("holds no constants, hence no weights")
        facts = {
            "operators": _operators(model, subgraphs[0], tensors),
            "inputs": [_at(tensors, index).described() for index in subgraphs[0].numbers(1, "i")],
            "outputs": [_at(tensors, index).described() for index in subgraphs[0].numbers(2, "i")],
        }
        notes = (f"ignored {len(subgraphs) - 1} more subgraphs",) if len(subgraphs) > 1 else ()
        loaders = {name: _loader(file, tensor) for name, tensor in constants.items()}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes, facts=facts)


def _buffer(table: Table, size: int) -> tuple[int, int]:
    """Where the bytes of a buffer are: in the flat buffer, or after it in files of more than two gigabytes."""
    offset = table.number(1, "Q")
    if offset <= 1:
        return table.span(0)
    length = table.number(2, "Q")
    if offset + length > size:
        raise Flaw(f"truncated: a buffer ends at byte {offset + length}, the file has {size}")
    return offset, length


def _tensor(table: Table, buffers: list[tuple[int, int]]) -> _Tensor:
    name = table.text(3)
    kind, index = table.number(1, "B"), table.number(2, "I")
    if kind >= len(_TYPES):
        raise Flaw(f"tensor {shown(name)!r}: element type {kind} of TensorFlow Lite is not known")
    _, axes = table.span(0, 4)
    if axes > _MOST_AXES or index >= max(len(buffers), 1):
        raise Flaw(f"tensor {shown(name)!r}: damaged: it has {axes} axes and buffer {index} of {len(buffers)}")
    quantisation = table.table(4)
    quantised = quantisation is not None and quantisation.span(2, 4)[1] > 0
    sparse = table.table(6) is not None
    begin, size = buffers[index] if buffers else (0, 0)
    tensor = _Tensor(name, table.numbers(0, "i"), _TYPES[kind], begin, size, quantised)
    if size and sparse:
        raise Flaw(f"tensor {shown(name)!r} is sparse, which is not read; convert the network without sparsity")
    return tensor


def _make_unique(tensors: list[_Tensor]) -> None:
    counts = Counter(tensor.name for tensor in tensors)
    for index, tensor in enumerate(tensors):
        if not tensor.name or counts[tensor.name] > 1:
            tensor.name = f"{tensor.name}#{index}"
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise Flaw("two tensors have the same name; convert the network again")


def _at(tensors: list[_Tensor], index: int) -> _Tensor:
    if not 0 <= index < len(tensors):
        raise Flaw(f"damaged: tensor {index} of {len(tensors)} is used")
    return tensors[index]


def _operators(model: Table, subgraph: Table, tensors: list[_Tensor]) -> list[dict[str, Any]]:
    codes = [_code(table) for table in model.tables(1)]
    operators = []
    for table in subgraph.tables(3):
        index = table.number(0, "I")
        if index >= len(codes):
            raise Flaw(f"damaged: operator {index} of {len(codes)} is used")
        operator: dict[str, Any] = {
            "op": codes[index],
            "inputs": [None if at == -1 else _at(tensors, at).name for at in table.numbers(1, "i")],
            "outputs": [_at(tensors, at).name for at in table.numbers(2, "i")],
        }
        options = table.table(4)
        for name, fields in _OPTIONS.get(codes[index], {}).items():
            operator[name] = _option(name, fields, options)
        operators.append(operator)
    return operators


def _code(table: Table) -> str:
    code = max(table.number(0, "b"), table.number(3, "i"))  # the second took over when 127 were not enough
    return table.text(1) if code == _CUSTOM else _OPERATORS.get(code, f"operator {code}")


def _option(name: str, fields: tuple[tuple[int, int], ...], options: Table | None) -> Any:
    kind = "B" if name in _BYTES else "i"
    values = [default if options is None else options.number(field, kind, default) for field, default in fields]
    if name in _WORDS:
        words = _WORDS[name]
        return words[values[0]] if values[0] < len(words) else f"{name} {values[0]}"
    if len(values) > 1:
        return values
    return bool(values[0]) if name in _BYTES else values[0]


def _loader(file: MappedFile, tensor: _Tensor) -> Callable[[], Array]:
    """Check what a constant claims and return what reads it."""
    label = f"tensor {shown(tensor.name)!r}"
    if tensor.quantised or tensor.dtype not in _PLAIN:
        raise Flaw(
            f"{label} is quantised or of a type that weights are not ({tensor.dtype}); expected a network in float32 or "
            "float16: convert it without quantisation"
        )
    if any(size < 0 for size in tensor.shape):
        raise Flaw(f"{label}: impossible shape {shown(tensor.shape)}")
    needed = math.prod(tensor.shape) * _dtypes.ITEMSIZE[tensor.dtype]
    if needed != tensor.size:
        raise Flaw(f"{label}: {tensor.dtype} of shape {shown(tensor.shape)} takes {needed} bytes, it has {tensor.size}")
    return functools.partial(_load, file, tensor)


def _load(file: MappedFile, tensor: _Tensor) -> Array:
    return as_dtype(file.piece(tensor.begin, tensor.size), _dtypes.resolve(tensor.dtype)).reshape(tensor.shape)
