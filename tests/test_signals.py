"""A command that is told to end leaves no worker behind, whatever everybody is in the middle of."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LONG = ("--arch", "v3plus", "--narrow", "8", "--backends", "torch", "--check", "training", "--steps", "100000")

START = """
import signal, sys
for name in ("SIGINT", "SIGHUP"):  # a suite that runs in the background is deaf to them, and so would be what it starts
    signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
from deeplabzoo.cli import run
run()
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="looks for child processes in Linux' /proc"
)


def workers_of(parent: int) -> list[int]:
    """Child processes that run Python code; a library asks `uname` and the like on its way."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread or a child that has just ended
            for child in map(int, (task / "children").read_text().split()):
                if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[1:2] == [b"-c"]:
                    found.append(child)
    return found


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, what) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("sent", "status"), [("SIGINT", 1), ("SIGTERM", 128 + 15), ("SIGHUP", 128 + 1), ("SIGKILL", -9)]
)
def test_nobody_is_left_behind(sent, status):
    command = [sys.executable, "-c", START, "parity", *LONG]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        try:
            assert within(60, lambda: workers_of(program.pid)), "no worker was started"
            workers = workers_of(program.pid)
            time.sleep(1)
            assert all(map(runs, workers))
            program.send_signal(getattr(signal, sent))
            said = program.communicate(timeout=20)[1].decode()
        finally:
            program.kill()
    assert program.returncode == status
    assert "Traceback" not in said
    assert within(15, lambda: not any(map(runs, workers))), f"worker left: {[w for w in workers if runs(w)]}"


def test_deaf_to_the_terminals_end_where_it_was_asked_to_be():
    """As `nohup` starts it."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); import sys; sys.argv[1:] = ['--version'];"
    code += "from deeplabzoo.cli import run\ntry:\n    run()\nfinally:\n    print(signal.getsignal(signal.SIGHUP).name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.splitlines()[-1] == "SIG_IGN"
