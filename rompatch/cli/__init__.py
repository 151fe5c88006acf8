"""The command line. A command is three thoughts: read the arguments, call one workflow, render the result.

Importing this package imports nothing: a command's module is imported when the command runs.
"""

from __future__ import annotations


def waiting(n_cores: int, n_running: int | None) -> tuple[str, str]:
    """How OpenMP's threads wait for each other, as an environment variable and its value.

    Threads that spin make an edit faster where the cores are free, and many times slower where other work wants them;
    there they had better sleep. (`OMP_WAIT_POLICY=PASSIVE python benchmarks/speed.py edit` shows the difference.)

    Args:
        n_running: threads that want a core now, this one included; None where that is not known.
    """
    free = n_running is not None and n_running <= max(1, n_cores - 1)
    return ("GOMP_SPINCOUNT", "300000") if free else ("OMP_WAIT_POLICY", "PASSIVE")


def _cores() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _running() -> int | None:
    """Threads that want a core now; None where the system does not say (it is Linux that does)."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            return int(file.read().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return None


def main() -> None:
    """The ``rompatch`` program; ends the process with the exit code (docs/cli.md, "Exit codes")."""
    import os
    import sys

    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # read when torch is loaded
        name, value = waiting(_cores(), _running())
        os.environ[name] = value
    try:
        from rompatch.cli.program import cli
        from rompatch.cli.terminal import prepare_streams

        prepare_streams()
        cli(prog_name="rompatch")
    except KeyboardInterrupt:  # before the program could say so itself
        sys.stderr.write("interrupted\n")
        sys.exit(130)
