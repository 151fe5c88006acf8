"""The command line. A command is three thoughts: read the arguments, call one workflow, render the result.

Importing this package imports nothing: a command's module is imported when the command runs.
"""

from __future__ import annotations


def main() -> None:
    """The ``rompatch`` program; ends the process with the exit code (docs/cli.md, "Exit codes")."""
    import sys

    try:
        from rompatch.cli.program import cli
        from rompatch.cli.terminal import prepare_streams

        prepare_streams()
        cli(prog_name="rompatch")
    except KeyboardInterrupt:  # before the program could say so itself
        sys.stderr.write("interrupted\n")
        sys.exit(130)
