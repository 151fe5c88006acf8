"""``python -m rompatch.cli.reference`` writes docs/cli.md from the commands themselves; ``--check`` fails on drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from rompatch.cli.program import EXAMPLES, cli
from rompatch.cli.table import COMMANDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_WIDTH = 100

_INTRODUCTION = """\
# Command line

This page is written by `python -m rompatch.cli.reference` (`make docs`) from the commands' own help.

Data goes to stdout, notes and progress to stderr. `--json` prints one JSON object instead of text; its keys are in
[json.md](json.md). NAME means a patch: its id, four or more digits of it, or its subject. The global options
(`--store`, `--quiet`, `--color`) may stand before the command or after it. Nothing ever asks a question where stdin is
no terminal.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed: the paragraph on stderr says what was expected, what was found, and what to do next |
| 2 | the command line or the edit request is wrong |
| 3 | a gate was missed (`apply` has changed nothing then), an `audit` found a fault, or some of many failed |
| 4 | no patch of that name, or several |
| 70 | a bug in rompatch (`ROMPATCH_DEBUG=1` prints the traceback) |
| 130 | interrupted with Ctrl-C |

## Environment

| variable | meaning |
| --- | --- |
| `ROMPATCH_STORE` | the store's folder, where `--store` does not name one |
| `ROMPATCH_CACHE` | where the default model and key statistics are kept |
| `ROMPATCH_WHEEL` | a wheel of the default model that is here already |
| `ROMPATCH_AUTHOR` | who the log says it was |
| `ROMPATCH_DEBUG` | `1`: tracebacks |
| `NO_COLOR` | no colours |
"""


def reference() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION, _section("rompatch", cli, None)]
    parts += [_section(path, command, parent) for path, command, parent in all_commands()]
    return "\n".join(parts)


def all_commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its full name and its parent's context, subcommands behind their group."""
    root = click.Context(cli, info_name="rompatch")
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        yield f"rompatch {name}", command, root
        if isinstance(command, click.Group):
            inner = click.Context(command, info_name=name, parent=root)
            for child in command.list_commands(inner):
                found = command.get_command(inner, child)
                assert found is not None
                yield f"rompatch {name} {child}", found, inner


def examples_of(command: click.Command) -> tuple[str, ...]:
    """The examples that a command's help shows."""
    return EXAMPLES if command is cli else tuple(getattr(command, "examples", ()))


def _section(path: str, command: click.Command, parent: click.Context | None) -> str:
    context = click.Context(
        command, info_name=path.rsplit(" ", 1)[-1], parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    context.color = False
    return f"## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when the page is not what would be written.")
def write(check: bool) -> None:
    """Write docs/cli.md."""
    text = reference()
    if check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise click.ClickException(f"{PAGE.name} differs from the commands: run `make docs`.")
        return
    PAGE.write_text(text, encoding="utf-8")
    click.echo(f"wrote {PAGE}", err=True)


if __name__ == "__main__":
    write()
