"""Fuzz every reader of checkpoints, guided by what it covers; `make fuzz` runs this.

Each target (tests/formats/formats_targets.py) runs in a process of its own, because what is written in C may end it.
A run is: put a changed file in place, open it, list what it holds, and read every tensor. It may end well or in one
clear `FormatError`. Anything else is a finding: another exception, a crash, more than two seconds of processor time,
three hundred megabytes of memory, or anything besides reading (an import, a call of the system, another file).
Inputs that did so are kept in `fuzz-findings`.

Usage: python fuzz/fuzz_readers.py [--runs N] [--seconds N] [--jobs N] [TARGET ...]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import mmap
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "formats")]
FINDINGS = Path("fuzz-findings")
SECONDS_EACH = 2.0
MEGABYTES = 300
MOST_FINDINGS = 10
HANG = 30  # seconds until a run is ended from outside: on a busy machine they are more than processor time
STATE = struct.Struct("<QQQdd")  # runs, refused, findings, slowest run, peak of memory


class Runner:
    """Runs one target in this process, and leaves its numbers where the parent finds them, even after a crash."""

    def __init__(self, name: str, folder: Path) -> None:
        import formats_targets
        import formats_watch

        self.examine = formats_targets.examine
        self.only_reading = formats_watch.only_reading
        self.target = formats_targets.targets()[name]
        self.folder = folder
        self.files = folder / "files"
        self.runs = self.refused = self.findings = 0
        self.slowest = 0.0
        for seed in self.target.seeds:
            self.clean()
            if not self.examine(self.target.place(self.files, seed)):
                raise SystemExit(f"{name}: the file to begin with is refused")
        self.before = peak()
        with (folder / "state").open("w+b") as file:
            file.truncate(STATE.size)
            self.state = mmap.mmap(file.fileno(), STATE.size)

    def clean(self) -> None:
        """Empty the folder of the files."""
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()

    def run(self, content: bytes) -> None:
        """Read the file that `content` stands for, and count."""
        (self.folder / "input").write_bytes(content)
        try:
            path = self.target.place(self.files, content)
        except OSError:
            return
        began = time.process_time()
        said = ""
        try:
            with self.only_reading(self.files):
                self.refused += not self.examine(path)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        took = time.process_time() - began
        self.runs += 1
        self.slowest = max(self.slowest, took)
        memory = peak() - self.before
        if took > SECONDS_EACH:
            said = f"took {took:.1f} seconds"
        elif memory > MEGABYTES:
            said = f"took {memory:.0f} megabytes"
        if said:
            self.findings += 1
            keep(self.target.name, content, said)
        STATE.pack_into(self.state, 0, self.runs, self.refused, self.findings, self.slowest, memory)
        if self.findings >= MOST_FINDINGS:
            raise SystemExit(1)


def peak() -> float:
    """Return the most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep(name: str, content: bytes, said: str) -> None:
    """Keep an input, and say what it did."""
    FINDINGS.mkdir(exist_ok=True)
    stem = f"{''.join(c if c.isalnum() else '-' for c in name)}-{time.time_ns():x}"
    (FINDINGS / stem).write_bytes(content)
    (FINDINGS / f"{stem}.txt").write_text(f"{name}: {said}\n")


def child(name: str, folder: Path, runs: int, seconds: int) -> None:
    """Fuzz one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["deeplabzoo.weights_converter.formats"]):
        runner = Runner(name, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(runner.target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    longest = max(4096, *(2 * len(seed) for seed in runner.target.seeds))
    options = [f"-runs={runs}", f"-max_total_time={seconds}", f"-timeout={HANG}", f"-max_len={longest}", "-seed=1"]
    quiet = ["-print_final_stats=0", "-verbosity=0", "-rss_limit_mb=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, *quiet, str(corpus)], runner.run, internal_libfuzzer=True)
    atheris.Fuzz()


def fuzz(name: str, runs: int, seconds: int) -> list[Any]:
    """Fuzz one target in a process of its own; returns its row of the table."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        command = [sys.executable, __file__, "--child", made, "--runs", str(runs), "--seconds", str(seconds), name]
        began = time.monotonic()
        crash = ""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 4 * HANG, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            crash = "hang"
        else:
            if done.returncode not in (0, 1):
                crash = "hang" if "timeout after" in done.stderr else f"crash ({done.returncode})"
        state = (folder / "state").read_bytes() if (folder / "state").exists() else b""
        if len(state) != STATE.size:
            raise SystemExit(f"{name} did not start: {done.stderr[-2000:]}")
        ran, refused, findings, slowest, memory = STATE.unpack(state)
        if crash:
            keep(name, (folder / "input").read_bytes(), f"{crash}\n{done.stderr[-4000:] if crash != 'hang' else ''}")
        return [name, ran, refused, slowest, memory, time.monotonic() - began, findings, crash or "none"]


def main() -> int:
    """Fuzz all targets, or those that are named, and print a table; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="by default all")
    parser.add_argument("--runs", type=int, default=10_000, help="of each target (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=300, help="at most, of each target (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time (default %(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.targets[0], given.child, given.runs, given.seconds)
    from formats_targets import targets
    from tabulate import tabulate

    names = given.targets or list(targets())
    rows = []
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool, contextlib.suppress(KeyboardInterrupt):
        for row in pool.map(lambda name: fuzz(name, given.runs, given.seconds), names):
            rows.append(row)
            print(f"{row[0]}: {row[1]} runs, {row[6]} findings, crash or hang: {row[7]}", flush=True)
    headers = ["reader", "runs", "refused", "slowest, s", "memory, MB", "took, s", "findings", "crash or hang"]
    print(tabulate(rows, headers, floatfmt=("", "", "", ".3f", ".0f", ".0f", "", "")))
    sound = len(rows) == len(names) and not any(row[6] or row[7] != "none" for row in rows)
    if not sound:
        print(f"the inputs are in {FINDINGS}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
