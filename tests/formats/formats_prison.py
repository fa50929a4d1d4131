"""Reads hostile files, each in a process of its own that is measured, watched and ended after a while.

Run as a program: paths come as a JSON list through stdin, what reading each of them did goes to stdout.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

SECONDS = 30  # until a reader is ended
ROOM = 2**32  # bytes of address space, so that what goes wrong does not take the machine


def imprisoned(paths: list[Path]) -> list[dict[str, Any]]:
    """Read files; returns for each `said` (the error, or None), `seconds`, `megabytes` above the start, and `seen`.

    `said` is "ended by signal N" where the process did not come to an end by itself.
    """
    command = [sys.executable, __file__]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, input=json.dumps([str(p) for p in paths]), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def _read(path: Path) -> dict[str, Any]:
    import formats_watch

    from deeplabzoo.errors import FormatError
    from deeplabzoo.weights_converter import formats

    said = None
    seen: list[str] = []
    try:
        with formats_watch.only_reading(path.parent):
            try:
                for value in formats.read(path).tensors.values():
                    value.tobytes()
            except FormatError as error:
                said = str(error)
    except AssertionError as error:
        seen.append(str(error))
    return {"said": said, "seen": seen}


def _one(path: Path) -> dict[str, Any]:
    """Read a file in a copy of this process."""
    before = psutil.Process().memory_info().rss
    answer, question = os.pipe()
    copy = os.fork()
    if copy == 0:
        try:
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
            os.write(question, json.dumps(_read(path)).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(question)
    with os.fdopen(answer, "rb") as file:
        told = file.read()
    _, status, usage = os.wait4(copy, 0)
    result: dict[str, Any] = json.loads(told) if told else {"said": None, "seen": ["no answer"]}
    if os.WIFSIGNALED(status):
        result["said"] = f"ended by signal {os.WTERMSIG(status)}"
    megabytes = usage.ru_maxrss / 2**10 - before / 2**20
    return {**result, "seconds": usage.ru_utime + usage.ru_stime, "megabytes": megabytes}


def _warm() -> None:
    """Read a sound file of each format, so that what readers import on first use is there."""
    from formats_targets import examine, targets

    for target in targets().values():
        with tempfile.TemporaryDirectory() as folder:
            assert examine(target.place(Path(folder), target.seeds[0]))


if __name__ == "__main__":
    _warm()
    print(json.dumps([_one(Path(path)) for path in json.load(sys.stdin)]))
