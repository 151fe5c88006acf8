"""Help, the table behind it, the written reference, completion, and the version."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from calling import CHECKOUT, Run, environment

import rompatch
from rompatch.cli.program import cli
from rompatch.cli.reference import PAGE, all_commands, examples_of, reference
from rompatch.cli.table import COMMANDS

EVERY = {path: (command, context) for path, command, context in all_commands()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command, _ = EVERY[f"rompatch {name}"]
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name].short_help


@pytest.mark.parametrize("path", EVERY)
def test_every_command_has_help_with_an_example_that_it_accepts(path: str, run: Run) -> None:
    command, _ = EVERY[path]
    help_text = run(*path.split()[1:], "--help").stdout
    assert command.help
    examples = examples_of(command)
    assert examples
    for example in examples:
        assert example in help_text
        assert example.startswith("rompatch ")


@pytest.mark.parametrize("path", EVERY)
def test_every_option_says_what_it_does(path: str) -> None:
    command, context = EVERY[path]
    for param in command.get_params(context):
        assert isinstance(param, click.Argument) or getattr(param, "help", None), f"{path} {param.name}"


@pytest.mark.parametrize("path", EVERY)
def test_every_command_takes_the_global_options(path: str) -> None:
    names = {name for param in EVERY[path][0].params for name in param.opts}
    assert {"--store", "-q", "--quiet", "--color"} <= names


@pytest.mark.parametrize("path", [path for path, (command, _) in EVERY.items() if not isinstance(command, click.Group)])
def test_examples_name_options_that_exist(path: str) -> None:
    command, context = EVERY[path]
    known = {name for param in command.get_params(context) for name in (*param.opts, *param.secondary_opts)}
    used = {word for example in examples_of(command) for word in example.split() if word.startswith("-")}
    assert used <= known


def test_the_reference_is_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rompatch.cli.reference", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr


def test_every_command_stands_in_the_reference() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == reference()
    for path in EVERY:
        assert f"## {path}\n" in page


def test_no_arguments_print_the_help(run: Run) -> None:
    assert run().stdout == run("--help").stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"rompatch {rompatch.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, run: Run) -> None:
    script = run("completion", shell).stdout
    assert "_ROMPATCH_COMPLETE" in script
    assert f"{shell}_complete" in script


def test_completion_completes_commands_and_options() -> None:
    def complete(words: str) -> list[str]:
        asked = {"_ROMPATCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        script = "import sys; sys.argv[0] = 'rompatch'; from rompatch.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment(**asked)
        )
        return [line.split(",", 1)[1] for line in done.stdout.split()]

    assert complete("rompatch re") == ["rebase", "revert"]
    assert "--min-score" in complete("rompatch verify --min")
    assert complete("rompatch stats b") == ["build"]


def test_options_stand_in_groups_and_the_global_ones_last(run: Run) -> None:
    text = run("create", "--help").stdout
    places = [text.index(f"\n{name}:\n") for name in ("Options", "Model", "Method", "Optimisation", "Global options")]
    assert places == sorted(places)


def test_the_group_is_the_program() -> None:
    assert isinstance(cli, click.Group)
    assert cli.list_commands(click.Context(cli)) == list(COMMANDS)
