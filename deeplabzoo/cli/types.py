"""What options of the command line accept, each checked with a near match where it is wrong.

Names of the library's things are written out, because the help must not wait for numpy; tests hold them against the
library's.
"""

from __future__ import annotations

import math
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any

import click

from deeplabzoo.backends import NAMES, resolve
from deeplabzoo.errors import unknown

PATH = click.Path(path_type=Path)

CHECK_NAMES = ("forward", "gradients", "training")
CRF_NAMES = ("v1", "v1_largefov", "v1_msc_largefov", "v1_coco_largefov", "v2_vgg16", "v2_resnet101")
DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16")
LAYOUT_NAMES = (
    "deeplabzoo", "torchvision", "smp", "smp-timm", "paddleseg", "tensorflow", "kerashub", "bonlime", "ryanccc",
    "vainf", "jfzhang95", "bubbliiiing", "mmseg", "kazuto", "hf", "caffe", "tflite",
)  # fmt: skip
PALETTE_NAMES = ("voc", "cityscapes", "ade20k", "pascal_context")


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases
    """A text with a form of its own; `ValueError` of `parse` becomes wrong use."""

    def __init__(self, name: str, metavar: str) -> None:
        self.name, self.metavar = name, metavar

    @abstractmethod
    def parse(self, text: str) -> Any:
        """The value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, unless that is done already."""
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Shown in the help."""
        return self.metavar


class NameType(_Parsed):
    """One of some names."""

    def __init__(self, name: str, metavar: str, legal: tuple[str, ...]) -> None:
        super().__init__(name, metavar)
        self.legal = legal

    def parse(self, text: str) -> str:
        """The name, if it is one of them."""
        if text not in self.legal:
            raise ValueError(unknown(self.name, text, self.legal))
        return text


class NamesType(_Parsed):
    """Some of those names, with commas between, each once and in the order given."""

    def __init__(self, one: NameType, metavar: str) -> None:
        super().__init__(f"{one.name}s", metavar)
        self.one = one

    def parse(self, text: str) -> tuple[str, ...]:
        """The names."""
        names = tuple(dict.fromkeys(self.one.parse(part.strip()) for part in text.split(",") if part.strip()))
        if not names:
            raise ValueError(f"{text!r} names none: expected at least one of {', '.join(self.one.legal)}")
        return names


class PythonType(_Parsed):
    """BACKEND=PATH, the Python interpreter that a backend runs in."""

    def parse(self, text: str) -> tuple[str, str]:
        """Backend and path; `~` is the home folder, and a name without a folder is looked up in PATH."""
        backend, sign, path = (part.strip() for part in text.partition("="))
        if not sign or not path:
            raise ValueError(f"{text!r}: expected BACKEND=PATH, such as paddle=/path/to/env/bin/python")
        backend = BACKEND.parse(backend)
        found = shutil.which(Path(path).expanduser())
        if found is None:
            raise ValueError(f"{path!r} for {backend} is no program here: expected the path of a Python interpreter")
        return resolve(backend).name, str(found)


class SizeType(_Parsed):
    """HEIGHTxWIDTH, or one number for a square."""

    def parse(self, text: str) -> tuple[int, int]:
        """Height and width."""
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
            raise ValueError(f"{text!r}: expected HEIGHTxWIDTH in pixels, such as 513x513")
        return int(parts[0]), int(parts[-1])


class ScalesType(_Parsed):
    """Numbers with commas between."""

    def parse(self, text: str) -> tuple[float, ...]:
        """The numbers; which are legal is for the library to say."""
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"{text!r}: expected numbers with commas between, such as 0.5,0.75,1") from None


class FieldType(_Parsed):
    """FIELD=VALUE, the value as in a spec file."""

    def parse(self, text: str) -> tuple[str, Any]:
        """Name and value; which are legal is for the library to say."""
        field, sign, value = text.partition("=")
        if not sign or not field.strip():
            raise ValueError(f"{text!r}: expected FIELD=VALUE, such as output.align_corners=true")
        import tomllib

        try:
            return field.strip(), tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            return field.strip(), value.strip()  # a word without quotes


class BoundType(_Parsed):
    """NUMBER, of the forward pass, or CHECK=NUMBER."""

    def parse(self, text: str) -> tuple[str, float]:
        """Check and bound."""
        check, sign, number = text.rpartition("=")
        if sign:
            CHECK.parse(check)
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not 0 < bound <= 1:
            raise ValueError(f"{text!r}: expected a number above 0 and at most 1, such as 1e-11 or gradients=1e-9")
        return check or "forward", bound


class SecondsType(_Parsed):
    """A finite number of seconds, at least 1."""

    def parse(self, text: str) -> float:
        """Seconds."""
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 1 <= seconds < math.inf:
            raise ValueError(f"{text!r}: expected seconds, at least 1")
        return seconds


BACKEND = NameType("backend", f"[{'|'.join(NAMES)}]", NAMES)
BACKENDS = NamesType(BACKEND, "B,B,...")
BOUND = BoundType("bound", "[CHECK=]X")
CHECK = NameType("check", "CHECK", CHECK_NAMES)
CHECKS = NamesType(CHECK, "CHECK,...")
FIELD = FieldType("field", "FIELD=VALUE")
LAYOUT = NameType("layout", "LAYOUT", LAYOUT_NAMES)
PYTHON = PythonType("python", "BACKEND=PATH")
SCALES = ScalesType("scales", "S,S,...")
SECONDS = SecondsType("seconds", "SECONDS")
SIZE = SizeType("size", "HxW")
