"""``completion``: the shell's side of completing commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from rompatch.cli.options import command
from rompatch.cli.settings import Settings

VARIABLE = "_ROMPATCH_COMPLETE"


@command(
    "completion",
    examples=(
        "rompatch completion bash >> ~/.bashrc",
        "rompatch completion zsh >> ~/.zshrc",
        "rompatch completion fish > ~/.config/fish/completions/rompatch.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(settings: Settings, shell: str) -> None:
    """Print the script that completes commands in your shell.

    It completes commands, options and their choices.
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None, "the choices above are the shells that click knows"
    click.echo(kind(root, {}, "rompatch", VARIABLE).source())
