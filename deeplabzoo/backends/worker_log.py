"""How a worker ended, and what it said last: the end of its stderr is kept in memory."""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import BinaryIO

from deeplabzoo.backends import wire

KEPT = 2**16
"""Bytes: a worker that never stops talking must fill neither memory nor a disk."""

_PATIENCE = 0.5
"""Seconds to wait for the end of what a dead worker said; a process that it started may keep the pipe open for long."""

_LOOK = 100
"""Milliseconds between looks at whether the log was closed."""


class Log:
    """Reads a worker's stderr in a thread, so that the worker never waits for room.

    Args:
        stream: where it comes from, closed by the thread, at its end or by `close`.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._kept = b""
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Read what a process that was ended has still said, and close the stream."""
        self._reader.join(_PATIENCE)
        self._closed = True
        self._reader.join(_PATIENCE)

    def last_lines(self, most: int = 5) -> list[str]:
        """What a process that was ended said last, of a traceback the exception alone."""
        self.close()
        lines = [line for line in self._kept.decode(errors="replace").splitlines() if line.strip()]
        plain = [line for line in lines if not line.startswith((" ", "\t", "Traceback "))]
        return (plain or lines)[-most:]

    def last_words(self, silent: str = "; it said nothing") -> str:
        """The last lines as the end of a sentence, `silent` where there are none."""
        lines = self.last_lines()
        return f"; its last lines: {wire.one_line(' | '.join(lines))}" if lines else silent

    def ending(self, code: int | None) -> str:
        """How a process of this status ended, None where it had to be ended, as the middle of a sentence."""
        if code is None:
            how = "closed its output and was ended"
        elif code < 0:
            how = f"died of {_signal_name(-code)}"
        else:
            how = f"died with status {code}"
        if code == -signal.SIGKILL:
            how += " (most likely because memory ran out: take a smaller image or model)"
        elif wire.out_of_memory(" ".join(self.last_lines())):
            how += " (memory ran out: take a smaller image or model)"
        return how

    def _read(self) -> None:
        # Closing a stream while another thread waits for it blocks, or hands its number to somebody else in between.
        with self._stream:
            source = self._stream.fileno()
            poll = select.poll()
            poll.register(source, select.POLLIN)
            while not self._closed:
                if not poll.poll(_LOOK):
                    continue
                if not (piece := os.read(source, KEPT)):
                    return
                self._kept = (self._kept + piece)[-KEPT:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
