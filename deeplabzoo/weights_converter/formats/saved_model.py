"""TensorFlow's SavedModels: a folder with `saved_model.pb`, the graph, and `variables/`, a checkpoint."""

from __future__ import annotations

from pathlib import Path

from deeplabzoo.weights_converter.formats import tf_checkpoint, tf_graph
from deeplabzoo.weights_converter.formats._checkpoint import Checkpoint, MappedFile
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading
from deeplabzoo.weights_converter.formats._protobuf import Walk, varint
from deeplabzoo.weights_converter.formats._tf_writer import index_of

NAME = "saved-model"
_FILE = "saved_model.pb"
_VARIABLES = "variables/variables"
_LIMIT = 2**31  # no protocol buffer is larger


def sniff(path: Path) -> bool:
    """Tell whether `path` is the folder of a SavedModel, or its `saved_model.pb` under any name.

    The file starts with the version of its schema, which is 1 for all there are, and the length of a graph.
    """
    file = path / _FILE if path.is_dir() else path
    start = head(file, 16)
    try:
        length, position = varint(start, 3)
        graph = start[position : position + 1] in (b"\x0a", b"\x12")  # what is known of the graph, or the graph itself
        return graph and start.startswith(b"\x08\x01\x12") and position + length <= file.stat().st_size
    except (Flaw, OSError):
        return False


def read(path: Path) -> Checkpoint:
    """Read the variables of a SavedModel, as `tf_checkpoint.read` does; or its constants, where it has no variables.

    Args:
        path: the folder, or its `saved_model.pb`.

    Raises:
        FormatError: damaged, or the variables are missing; also on access of a tensor.
    """
    with reading(path, NAME):
        file = path / _FILE if path.is_dir() else path
        prefix = file.parent / _VARIABLES
        if index_of(prefix).is_file():
            return tf_checkpoint.bundle(path, prefix, NAME)
        mapped = MappedFile(file)
        if mapped.size > _LIMIT:
            raise Flaw(f"takes {mapped.size} bytes; a protocol buffer has at most {_LIMIT}")
        walk = Walk(mapped.piece(0, mapped.size).data)
        # The second field holds the first graph with all about it, of which the second field is the graph itself.
        graph = _second(walk, _second(walk, (0, mapped.size)))
        if graph == (0, 0):
            raise Flaw(f"holds no graph, and there is no {_VARIABLES}.index beside it; copy the whole folder")
        return tf_graph.constants(path, mapped, walk, graph, NAME)


def _second(walk: Walk, span: tuple[int, int]) -> tuple[int, int]:
    """Return where the second field of a message begins and ends; (0, 0) where it is not there."""
    return next(((field.begin, field.end) for field in walk.fields(*span) if field.field == 2), (0, 0))
