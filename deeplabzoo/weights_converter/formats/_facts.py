"""Plain data that stand beside the tensors (`Checkpoint.facts`): JSON, and what pickles hold, both within bounds."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from deeplabzoo.weights_converter.formats._checkpoint import MappedFile
from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._pickle_parts import View

JSON_LIMIT = 4 * 2**20
"""Bytes of a configuration: that of a Keras Xception-65 takes half a megabyte."""
_DEPTH_LIMIT = 64
_PARTS_LIMIT = 20_000
_TEXT_LIMIT = 2**20


def parse_config(data: bytes | str, what: str) -> dict[str, Any]:
    """Return the object that a JSON text is.

    Args:
        data: the text, UTF-8 where it is bytes.
        what: where it was found, for messages.

    Raises:
        Flaw: it is too long, nested too deep, damaged, or something else than an object.
    """
    if len(data) > JSON_LIMIT:
        raise Flaw(f"{what} takes {len(data)} bytes; the limit is {JSON_LIMIT}")
    try:
        # Given bytes, json would take UTF-16 and UTF-32 too.
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Flaw(f"{what} is damaged: {shown(error)}; expected JSON") from error
    if not isinstance(value, dict):
        raise Flaw(f"{what} is a JSON {type(value).__name__}; expected an object")
    level: list[Any] = [value]
    for _ in range(_DEPTH_LIMIT):
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return value
    raise Flaw(f"{what} is nested more than {_DEPTH_LIMIT} deep")


class _Skip(Exception):  # noqa: N818 - no error: the value is left out
    """A value that is not plain."""


def plain_entries(entries: dict[Any, Any], file: MappedFile) -> dict[str, Any]:
    """Return those entries of a pickled dictionary that are plain: text, numbers, and lists and dictionaries of them.

    Parts of a dictionary that are not plain (tensors, objects) are left out; so is a list that has such a part, what is
    nested more than 64 deep, longer than a megabyte, and everything after the first twenty thousand values.

    Args:
        entries: inert values, as the restricted machine made them.
        file: where long text lies.
    """
    left = _PARTS_LIMIT
    text_left = _TEXT_LIMIT

    def text(value: str | View) -> str:
        nonlocal text_left
        length = len(value) if isinstance(value, str) else value.length
        if length > text_left or (isinstance(value, View) and not value.text):
            raise _Skip
        text_left -= length
        if isinstance(value, str):
            return value
        return file.piece(value.offset, value.length).tobytes().decode("utf-8", "backslashreplace")

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEPTH_LIMIT:
            raise _Skip
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str | View):
            return text(value)
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return kept(value, depth)
        raise _Skip

    def kept(value: dict[Any, Any], depth: int) -> dict[str, Any]:
        result = {}
        for key, item in value.items():
            with contextlib.suppress(_Skip):
                found = plain(item, depth + 1)
                if isinstance(key, str):
                    result[key] = found
            if left < 0:
                break
        return result

    return kept(entries, 0)
