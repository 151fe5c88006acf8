"""A command that is a group of commands: their help, then the global options, then examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from rompatch.cli.options import write_examples, write_options


class Group(click.Group):
    """Subcommands under one name.

    Args:
        examples: command lines that ``--help`` shows.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the options and the examples."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)
        write_examples(self.examples, formatter)
