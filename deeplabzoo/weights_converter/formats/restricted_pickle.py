"""A reader of pickles that can't execute anything.

A pickle is a program for a small stack machine; two of its instructions import and call whatever the file names. This
is that machine without those two: a name is looked up in a table given by the caller, whose entries are functions of
this package that only build inert values, and a name of Python itself, numpy or torch that is not in the table ends
the reading. Names of anything else are those of a training script: nothing of them is imported, and what the file makes
of such a class is an inert value that knows its name and no more.

It is a machine of our own rather than a subclass of the standard one for two more reasons: the standard one allocates
what a file claims (a memo of four billion places takes five bytes), and it copies every tensor, while here long strings
stay in the file and are known by their position. A value that was kept once can be recalled and used a million times,
so whatever an instruction may cost is counted: instructions, calls with their arguments, text, and keys.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping, MutableSequence
from typing import Any

from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._pickle_parts import (
    NAME_LIMIT,
    Buildable,
    Callee,
    Inert,
    View,
    refusal,
    stranger,
)

# A training checkpoint of a thousand tensors with its optimizer takes about a hundred thousand.
_OPCODE_LIMIT = 1_000_000
_CALL_LIMIT = 50_000  # calls, and names of strangers
_ARGUMENTS_LIMIT = 64
_INLINE = 4096  # longer strings and byte strings are not copied out of the file
_INLINE_TOTAL = 32 * 2**20
_MEMO_LIMIT = 2**32  # what protocol 2 can count up to
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Modules where a name that is not in the table is an attack, or a tensor of a kind that is not read.
_OWN = sys.stdlib_module_names | {"numpy", "torch"}
_KEY_PARTS = 8
# Who chooses numbers so that their hashes are equal makes a dictionary of n keys cost n * n steps. Hashes of whole
# numbers below this are all different; those of tuples can be chosen, so that there may be a few. Text is salted.
_KEY_NUMBER = 2**60
_TUPLE_KEYS_LIMIT = 1000


class Machine:
    """Runs pickles that lie in a buffer.

    Args:
        data: the bytes, normally a memory map.
        known: dotted name -> value that the name stands for; a `Callee` where it may be called.
        persistent: makes a value from a persistent id (torch's storages); without it they are refused.
        base: offset of `data` in the file, added to the offsets of views.
    """

    def __init__(
        self,
        data: memoryview,
        known: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None = None,
        base: int = 0,
    ) -> None:
        self._data = data
        self._known = known
        self._persistent = persistent
        self._base = base
        self._left = _OPCODE_LIMIT
        self._calls_left = _CALL_LIMIT
        self._inline_left = _INLINE_TOTAL
        self._tuple_keys_left = _TUPLE_KEYS_LIMIT
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, start: int = 0) -> tuple[Any, int]:
        """Run the pickle at `start`.

        Returns:
            Its value and the position after it.

        Raises:
            Flaw: the pickle is damaged, too long, or wants something that is not in the table.
        """
        self._position, self._stack, self._marks, self._memo = start, [], [], {}
        while True:
            self._left -= 1
            if self._left < 0:
                raise Flaw(f"its pickle takes more than {_OPCODE_LIMIT} steps; expected a dictionary of tensors")
            opcode = self._take(1)[0]
            if opcode == 0x2E:  # STOP
                return self._pop(), self._position
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise Flaw(f"damaged pickle: unknown instruction 0x{opcode:02x} at byte {self._position - 1}")
            handler(self)

    # The pickle's bytes.

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if count < 0 or end > len(self._data):
            raise Flaw(f"truncated pickle: {count} bytes expected at byte {self._position}")
        taken = bytes(self._data[self._position : end])
        self._position = end
        return taken

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(number)

    def _line(self) -> str:
        window = bytes(self._data[self._position : self._position + _INLINE])
        length = window.find(b"\n")
        if length < 0:
            raise Flaw("damaged pickle: a line without an end")
        self._position += length + 1
        return window[:length].decode("utf-8", "backslashreplace")

    def _string(self, length: int, encoding: str) -> None:
        """Push a string: itself where it is short, else a view. `encoding` is "" for bytes."""
        if length > _INLINE:
            if length > len(self._data) - self._position:
                raise Flaw(f"truncated pickle: a string claims {length} bytes at byte {self._position}")
            self._push(View(self._base + self._position, length, encoding == "utf-8"))
            self._position += length
            return
        self._inline_left -= length
        if self._inline_left < 0:
            raise Flaw(f"its short strings take more than {_INLINE_TOTAL} bytes; expected a dictionary of tensors")
        taken = self._take(length)
        self._push(taken.decode(encoding, "surrogatepass") if encoding else taken)

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise Flaw("damaged pickle: its stack is empty where a value is needed")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise Flaw("damaged pickle: its stack is empty where a value is needed")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise Flaw("damaged pickle: a group ends that has not begun")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    # Names and calls: where the standard machine would execute.

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Flaw("damaged pickle: a name that is not text")
        if max(len(module), len(name)) > NAME_LIMIT:
            raise Flaw(f"damaged pickle: a name of {max(len(module), len(name))} characters, {shown(name)}")
        dotted = f"{_PYTHON2.get(module, module)}.{name}"
        if dotted in self._known:
            self._push(self._known[dotted])
        elif module.split(".")[0] in _OWN or not all(part.isidentifier() for part in dotted.split(".")):
            raise refusal(dotted)
        else:
            self._spend_call()
            self._push(stranger(dotted))

    def _spend_call(self) -> None:
        self._calls_left -= 1
        if self._calls_left < 0:
            raise Flaw(f"its pickle makes more than {_CALL_LIMIT} objects; expected a dictionary of tensors")

    def _call(self, target: Any, arguments: Any) -> None:
        if not isinstance(target, Callee):
            raise Flaw(f"damaged pickle: it calls a {type(target).__name__}")
        if not isinstance(arguments, tuple) or len(arguments) > _ARGUMENTS_LIMIT:
            raise Flaw(
                f"damaged pickle: {shown(target.name)} is called without a tuple of at most {_ARGUMENTS_LIMIT} arguments"
            )
        self._spend_call()
        try:
            self._push(target.function(*arguments))
        except (TypeError, ValueError) as error:
            raise Flaw(
                f"damaged pickle: {shown(target.name)} is called with wrong arguments ({shown(error)})"
            ) from error

    def _reduce(self) -> None:
        arguments = self._pop()
        self._call(self._pop(), arguments)

    def _new_with_keywords(self) -> None:
        if self._pop() != {}:
            raise Flaw("refuses an object made with keyword arguments: only tensors and plain containers are read")
        self._reduce()

    def _object(self) -> None:
        items = self._pop_mark()
        if not items:
            raise Flaw("damaged pickle: an object without a class")
        self._call(items[0], tuple(items[1:]))

    def _instance(self) -> None:
        module, name = self._line(), self._line()
        arguments = tuple(self._pop_mark())
        self._global(module, name)
        self._call(self._pop(), arguments)

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Buildable):
            target.build(state)
        elif not isinstance(target, Inert | dict):  # an OrderedDict's state is torch's `_metadata`: versions of modules
            raise Flaw(f"refuses to set the state of a {type(target).__name__}")

    def _persistent_id(self, key: Any) -> None:
        if self._persistent is None:
            raise Flaw("refuses a persistent id: this format keeps its tensors inside the pickle")
        self._push(self._persistent(key))

    # Containers and the memo.

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            return
        if type(target) is not dict or len(items) % 2:
            raise Flaw("damaged pickle: items are put into what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, tuple):
                self._tuple_keys_left -= 1
            if not _is_key(key) or self._tuple_keys_left < 0:
                raise Flaw(f"a dictionary has {shown(key)}, a {type(key).__name__}, for a key; expected text")
            target[key] = value

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            return
        if not isinstance(target, MutableSequence) or isinstance(target, bytearray):
            raise Flaw("damaged pickle: items are added to what is no list")
        target.extend(items)

    def _append(self) -> None:
        self._extend([self._pop()])

    def _dictionary(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise Flaw(f"damaged pickle: it recalls value {index}, which it never kept")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        if not 0 <= index < _MEMO_LIMIT:
            raise Flaw(f"damaged pickle: it keeps a value as number {shown(index)}")
        self._memo[index] = self._top()

    def _integer(self, length: int) -> None:
        if length > 255:
            raise Flaw(f"damaged pickle: an integer of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _integer_line(self) -> None:
        text = self._line()
        self._push({"00": False, "01": True}[text] if text in {"00", "01"} else int(text.removesuffix("L")))


def _is_key(value: Any) -> bool:
    """Tell whether a value is hashed at once; a tuple in a tuple can take for ever."""
    if isinstance(value, tuple):
        return len(value) <= _KEY_PARTS and all(not isinstance(part, tuple) and _is_key(part) for part in value)
    return abs(value) < _KEY_NUMBER if isinstance(value, int) else isinstance(value, str | float | bytes | Inert | None)


def _refuse_instruction(what: str) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        raise Flaw(f"refuses {what}: a checkpoint of tensors has no use for it")

    return handler


# By number, as the standard library's pickletools lists and explains them.
_HANDLERS: dict[int, Callable[[Machine], None]] = {
    ord("("): lambda m: m._marks.append(len(m._stack)),
    ord("0"): lambda m: void(m._pop()),
    ord("1"): lambda m: void(m._pop_mark()),
    ord("2"): lambda m: m._push(m._top()),
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("I"): lambda m: m._integer_line(),
    ord("L"): lambda m: m._integer_line(),
    ord("J"): lambda m: m._push(m._number("<i")),
    ord("K"): lambda m: m._push(m._number("<B")),
    ord("M"): lambda m: m._push(m._number("<H")),
    0x8A: lambda m: m._integer(m._number("<B")),
    0x8B: lambda m: m._integer(m._number("<I")),
    ord("F"): lambda m: m._push(float(m._line())),
    ord("G"): lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    # Python 2's strings are bytes; latin-1 keeps every one of them, as Paddle itself reads them.
    ord("T"): lambda m: m._string(m._number("<I"), "latin-1"),
    ord("U"): lambda m: m._string(m._number("<B"), "latin-1"),
    ord("V"): lambda m: m._push(m._line()),
    ord("X"): lambda m: m._string(m._number("<I"), "utf-8"),
    0x8C: lambda m: m._string(m._number("<B"), "utf-8"),
    0x8D: lambda m: m._string(m._number("<Q"), "utf-8"),
    ord("B"): lambda m: m._string(m._number("<I"), ""),
    ord("C"): lambda m: m._string(m._number("<B"), ""),
    0x8E: lambda m: m._string(m._number("<Q"), ""),
    0x96: lambda m: m._string(m._number("<Q"), ""),
    ord(")"): lambda m: m._push(()),
    ord("t"): lambda m: m._push(tuple(m._pop_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("]"): lambda m: m._push([]),
    ord("l"): lambda m: m._push(m._pop_mark()),
    ord("a"): lambda m: m._append(),
    ord("e"): lambda m: m._extend(m._pop_mark()),
    ord("}"): lambda m: m._push({}),
    ord("d"): lambda m: m._dictionary(),
    ord("s"): lambda m: m._set_item(),
    ord("u"): lambda m: m._set_items(m._pop_mark()),
    # Sets hold nothing of interest; as lists they need no hashing.
    0x8F: lambda m: m._push([]),
    0x90: lambda m: m._extend(m._pop_mark()),
    0x91: lambda m: m._push(m._pop_mark()),
    ord("g"): lambda m: m._get(int(m._line())),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("p"): lambda m: m._put(int(m._line())),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("c"): lambda m: m._global(m._line(), m._line()),
    0x93: lambda m: m._global(*reversed((m._pop(), m._pop()))),
    ord("R"): lambda m: m._reduce(),
    0x81: lambda m: m._reduce(),
    0x92: lambda m: m._new_with_keywords(),
    ord("o"): lambda m: m._object(),
    ord("i"): lambda m: m._instance(),
    ord("b"): lambda m: m._build(),
    ord("P"): lambda m: m._persistent_id(m._line()),
    ord("Q"): lambda m: m._persistent_id(m._pop()),
    0x80: lambda m: void(m._number("<B")),
    0x95: lambda m: void(m._number("<Q")),  # a frame only helps buffered reading
    ord("S"): _refuse_instruction("a quoted string of protocol 0"),
    0x82: _refuse_instruction("a registered extension"),
    0x83: _refuse_instruction("a registered extension"),
    0x84: _refuse_instruction("a registered extension"),
    0x97: _refuse_instruction("an out-of-band buffer"),
    0x98: _refuse_instruction("an out-of-band buffer"),
}


def void(value: object) -> None:
    """Drop a value."""
