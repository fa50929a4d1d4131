"""The small network that goldens are tested with, and goldens and files that were changed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.parity import golden_file
from deeplabzoo.parity.golden_file import Golden
from deeplabzoo.weights_converter.formats import safetensors
from deeplabzoo.zoo.models import named_spec

SPEC = named_spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3), num_classes=5).narrowed(8)
GRAPH = build_graph(SPEC)
SIZE = (33, 49)


def reload(golden, path):
    golden.save(path, force=True)
    return Golden.load(path)


def changed(golden, place, **changes):
    """The golden with other fields in one record."""
    records = list(golden.records)
    records[place] = dataclasses.replace(records[place], **changes)
    return dataclasses.replace(golden, records=tuple(records))


def with_output(golden, place, **changes):
    """The golden with other fields in the output of one record."""
    output = dataclasses.replace(golden.records[place].outputs[0]["out"], **changes)
    return changed(golden, place, outputs=({"out": output},))


def rewritten(path, change, target, *, sealed=True):
    """The file with other JSON or tensors; sealed anew, as one who forges it would."""
    stored = safetensors.read(path)
    arrays = {name: np.array(array) for name, array in stored.tensors.items()}
    data = json.loads(stored.metadata[golden_file._KEY])
    data = change(data, arrays) or data
    text = json.dumps(data)
    seal = golden_file._seal(text, arrays) if sealed else stored.metadata[golden_file._SEAL]
    safetensors.write(target, arrays, {golden_file._KEY: text, golden_file._SEAL: seal})
    return target
