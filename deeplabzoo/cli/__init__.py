"""The command line. Data on stdout, messages on stderr, exit 2 for wrong use and 1 for a failure."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from types import FrameType
from typing import Any

import click

from deeplabzoo._version import __version__
from deeplabzoo.errors import DeepLabZooError

COMMANDS = {
    "backends": "What is installed here: versions, devices, abilities.",
    "build": "Build a native model, print what it is, save it.",
    "convert": "Convert a checkpoint between frameworks and layouts.",
    "demo": "Run the main job end to end and draw it.",
    "evaluate": "Score a model on photos with true labels.",
    "fetch": "Download published weights and convert them.",
    "golden": "Record what backends compute, replay it after an upgrade.",
    "info": "Layers, cost and receptive field of a model.",
    "inspect": "Tell format, layout and architecture of a file.",
    "list": "Named models and their published weights.",
    "parity": "Prove that backends compute the same.",
    "predict": "Label every pixel of photos.",
}


class _Failure(click.ClickException):
    """One of our own errors as a single line on stderr."""

    def __init__(self, error: DeepLabZooError) -> None:
        from deeplabzoo.cli.common import printable  # only here: `--help` stays fast

        super().__init__(printable(" ".join(str(error).split())))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance


class _Lazy(click.Group):
    """Loads a command's module when the command is called, so that `--help` costs next to nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"deeplabzoo.cli.{cmd_name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DeepLabZooError as error:
            raise _Failure(error) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly when the reader of a pipe is gone
                raise
            raise click.ClickException(f"{error.filename or 'output'}: {error.strerror or error}") from None
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error or 'take a smaller image or model'}") from None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="deeplabzoo")
def main() -> None:
    """DeepLab described once, native in PyTorch, Paddle, Keras and ONNX.

    Start with `deeplabzoo build --backend torch --arch v3plus`, or `deeplabzoo demo`.
    """


def run() -> None:
    """The command line as a program: told to end, it ends its workers first, as with Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        # A program started with `nohup` stays deaf to SIGHUP; Windows has none.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), end)
    main()
