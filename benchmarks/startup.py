"""Time of `import deeplabzoo` and `deeplabzoo --help` beside an interpreter that does nothing."""

import statistics
import subprocess
import sys
import time

from tabulate import tabulate

REPEATS = 15

WAYS = {
    "python -c pass": "pass",
    "import deeplabzoo": "import deeplabzoo",
    "deeplabzoo --help": "from deeplabzoo.cli import main; main(['--help'], standalone_mode=False)",
    "deeplabzoo list": "from deeplabzoo.cli import main; main(['list'], standalone_mode=False)",
}

CHECK = """
import sys
print([n for n in ("torch", "paddle", "tensorflow", "keras", "jax") if n in sys.modules], file=sys.stderr)
"""


def main() -> None:
    """Measure every way and print the table."""
    rows, base = [], 0.0
    for title, code in WAYS.items():
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        base = base or seconds
        result = subprocess.run([sys.executable, "-c", f"{code}\n{CHECK}"], check=True, capture_output=True, text=True)
        frameworks = result.stderr.strip().splitlines()[-1].strip("[]") or "none"
        rows.append((title, f"{seconds * 1000:.0f}", f"{seconds / base:.1f}", frameworks))
    print(f"median of {REPEATS} fresh processes\n")
    print(tabulate(rows, headers=("command", "ms", "x python", "frameworks imported"), disable_numparse=True))


if __name__ == "__main__":
    main()
