"""What a pickle may be made of here: values that do nothing, and the functions of ours that stand for its names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from deeplabzoo.weights_converter.formats._guard import Flaw, shown

NAME_LIMIT = 256
"""Characters of a module's name, or of what is in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A long string left where it lies: `length` bytes at `offset` of the file, `text` where they are UTF-8."""

    offset: int
    length: int
    text: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Callee:
    """What a name in a file stands for: a function of ours that may be called in its place."""

    name: str
    function: Callable[..., Any]


class Stranger(Callee):
    """A name of a module that is none of Python's, numpy's or torch's: it may be called where it looks like a class."""

    __slots__ = ()


class Inert:
    """A value that is known to be harmless and of no interest; it swallows whatever the file does to it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Buildable:
    """A value that takes a state from the file (the BUILD instruction) through a method of ours."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Take the state; raises `Flaw` where it is not as it should be."""
        raise NotImplementedError


def stranger(dotted: str) -> Stranger:
    """Return what stands for a name of a training script, or of a package that it uses."""

    def make(*_: Any) -> Inert:
        # A function would be called for what it does; a class is made to hold something.
        if not dotted.rpartition(".")[2].lstrip("_")[:1].isupper():
            raise refusal(dotted)
        return Inert(dotted)

    return Stranger(dotted, make)


def refusal(dotted: str) -> Flaw:
    """Return the error that says that what a file names is not called."""
    return Flaw(
        f"refuses to call {shown(dotted)}: only tensors and plain containers are read and nothing is executed; if you "
        "trust the file, load it with the framework that made it and save the bare state dict"
    )
