"""Start-up of the commands that load no model: user and system time, median of several runs.

    python benchmarks/startup.py [--runs 7]

Beside each command stands its ratio to `python -c "import torch"` in the same run.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile

COMMANDS = (("--help",), ("--version",), ("list",), ("log",), ("status",))


def cpu_seconds(command: list[str], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def median(command: list[str], folder: str, runs: int) -> float:
    return statistics.median(cpu_seconds(command, folder) for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = "import rompatch; rompatch.open_store('.rompatch').close()"
        subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
        torch = median([sys.executable, "-c", "import torch"], folder, args.runs)
        print(f"{'import torch':<12} {torch:.2f} s")
        for command in COMMANDS:
            spent = median([sys.executable, "-m", "rompatch", *command], folder, args.runs)
            print(f"{' '.join(command):<12} {spent:.2f} s  {spent / torch:.2f} of importing torch")


if __name__ == "__main__":
    main()
