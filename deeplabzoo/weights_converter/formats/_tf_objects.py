"""The object graph of TensorFlow 2's checkpoints, which tells what the variable behind each key is called.

TensorFlow 2 stores a variable under the path that leads to it through Python objects, such as
`layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE`. The variable's own name, `stem/kernel`, stands in a message of
its own (tensorflow/core/protobuf/trackable_object_graph.proto), stored as a string tensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats._crc32c import crc32c
from deeplabzoo.weights_converter.formats._guard import Flaw
from deeplabzoo.weights_converter.formats._protobuf import Bytes, fields, varint

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
LIMIT = 2 * 2**20


def string(piece: npt.NDArray[np.uint8], checksum: int) -> memoryview:
    """Return the text of a string tensor without dimensions.

    Args:
        piece: its bytes in the data file: the length, a check sum of the length, the text.
        checksum: what the index says, unmasked: of the length as four bytes, its check sum, and the text.

    Raises:
        Flaw: the bytes are none, or damaged.
    """
    data = piece.data
    length, start = varint(data, 0)
    if start + 4 + length != len(data):
        raise Flaw(f"the object graph claims {length} bytes and holds {len(data) - start - 4}")
    if crc32c(np.concatenate([np.array([length], "<u4").view(np.uint8), piece[start:]])) != checksum:
        raise Flaw("the object graph is damaged (its check sum differs); get the file again")
    return data[start + 4 :]


def names(graph: Bytes) -> dict[str, str]:
    """Return key -> name of the variable, for the variables that have a name."""
    result = {}
    for kind, _, item in fields(graph):
        if kind != 1:  # nodes
            continue
        for part, _, attribute in fields(item):
            if part == 2:  # attributes
                texts = {field: payload for field, _, payload in fields(attribute) if field in (2, 3)}
                name, key = (bytes(texts.get(field, b"")).decode("utf-8", "backslashreplace") for field in (2, 3))
                if name and key:
                    result[key] = name
    return result
