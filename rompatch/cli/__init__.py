"""The command line. A command is three thoughts: read the arguments, call one workflow, render the result.

Importing this package imports nothing: a command's module is imported when the command runs.
"""

from __future__ import annotations


def main() -> None:
    """The ``rompatch`` program; ends the process with the exit code (docs/cli.md, "Exit codes")."""
    import os
    import sys

    # Measured: with other work on the same cores, OpenMP threads that spin while they wait make torch ten to twenty
    # times slower; threads that sleep cost nothing that shows on idle cores. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from rompatch.cli.program import cli
        from rompatch.cli.terminal import prepare_streams

        prepare_streams()
        cli(prog_name="rompatch")
    except KeyboardInterrupt:  # before the program could say so itself
        sys.stderr.write("interrupted\n")
        sys.exit(130)
