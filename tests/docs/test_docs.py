"""The pages say what is so: links lead somewhere, command lines parse, examples run, tables are those of the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pico import save_pico

import rompatch
from rompatch.architectures import ARCHITECTURES, PRESET_LAYERS
from rompatch.cli.program import cli
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.errors import RompatchError

ROOT = Path(rompatch.__file__).resolve().parents[1]
DOCS = ROOT / "docs"

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_SPAN = re.compile(r"`(rompatch [^`\n]+)`")
_ENVIRONMENT = re.compile(r"^(?:[A-Z_]+=\S+ )+")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """(info, body) of every fenced block."""
    for match in _FENCE.finditer(path.read_text(encoding="utf-8")):
        yield match[1].strip(), match[2]


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def anchor(heading: str) -> str:
    """A heading's anchor, as code hosts make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)}


def links(path: Path) -> list[str]:
    found = [first or second for first, second in _LINK.findall(prose(path))]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def command_lines(path: Path) -> list[str]:
    """Every ``rompatch ...`` in the page's blocks, a "$ " in front or not."""
    lines = [line.strip() for _, body in blocks(path) for line in body.replace("\\\n", " ").splitlines()]
    lines = [_ENVIRONMENT.sub("", line.removeprefix("- run: ").removeprefix("$ ")) for line in lines]
    return [line for line in lines if line.startswith("rompatch ")]


def mentions(path: Path) -> list[str]:
    """Every ``rompatch ...`` in the page's prose; arguments may be left out there."""
    return _SPAN.findall(prose(path))


def words(line: str) -> list[str]:
    """The arguments that the program would be given: up to a comment, a redirection or another command."""
    found = shlex.split(line, comments=True)[1:]
    ends = [index for index, word in enumerate(found) if word in {">", ">>", "|", "&&", "||", ";"}]
    return found[: ends[0]] if ends else found


def parse(arguments: list[str]) -> None:
    """Parse as the program would, down to the last subcommand, and run nothing."""
    context = cli.make_context("rompatch", list(arguments), resilient_parsing=False)
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, heading = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)} links to {link}"
        assert not heading or heading in anchors(path), f"{name_of(page)} links to {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_parses(page: Path) -> None:
    for line in command_lines(page):
        try:
            parse(words(line))
        except (click.UsageError, click.exceptions.Exit) as problem:
            pytest.fail(f"{name_of(page)}: {line}: {problem}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_mentioned_exists(page: Path) -> None:
    for line in mentions(page):
        try:
            parse(words(line))
        except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
            continue  # the command's name, not a call of it
        except (click.UsageError, click.exceptions.Exit) as problem:
            pytest.fail(f"{name_of(page)}: {line}: {problem}")


def test_the_pages_have_command_lines_to_test() -> None:
    assert len(command_lines(ROOT / "README.md")) >= 6
    assert len(command_lines(DOCS / "quickstart.md")) >= 10


@pytest.mark.parametrize("line", ["rompatch crate a b c", "rompatch apply", "rompatch verify a --min-scor 3"])
def test_a_wrong_command_line_would_be_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(words(line))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles(page: Path) -> None:
    for info, body in blocks(page):
        if info.split(" ")[0] == "python":
            compile(body, name_of(page), "exec")


@pytest.mark.parametrize(
    ("page", "least", "prints"), [("python.md", 10, "There is no patch 'Atlantis'"), ("serving.md", 3, "overlay ['")]
)
def test_the_examples_of_a_page_run(
    page: str,
    least: int,
    prints: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order, in one namespace, in a folder whose store has a pico model as its base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)
    monkeypatch.setattr("rompatch.workflows.statistics.SAMPLED_TOKENS", 512)  # enough for a pico model
    save_pico(tmp_path / "my-model")
    with rompatch.open_store() as store:
        store.use("./my-model")
    namespace: dict[str, object] = {"__name__": "examples"}
    examples = [body for info, body in blocks(DOCS / page) if info == "python run"]
    for number, body in enumerate(examples, 1):
        try:
            exec(compile(body, f"docs/{page}, example {number}", "exec"), namespace)  # noqa: S102 - our own page
        except Exception as problem:  # noqa: BLE001 - whatever it is, the page is wrong; say where
            pytest.fail(f"example {number}: {type(problem).__name__}: {problem}")
    assert len(examples) >= least
    assert prints in capsys.readouterr().out


def test_every_public_name_has_its_place_on_the_python_page() -> None:
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    missing = [name for name in rompatch.__all__ if f"`{name}`" not in text]
    assert missing == []


def test_every_page_is_linked_from_the_index() -> None:
    linked = set(links(DOCS / "index.md"))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked
    assert "docs/index.md" in links(ROOT / "README.md")


def test_the_tables_of_models_are_those_of_the_code() -> None:
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|$", text, re.MULTILINE)
    assert rows == [(row.model_type, row.pattern) for row in ARCHITECTURES.values()]
    layers = re.findall(r"\(`(\w+)`\) \| (\d+) \| (\d+) \| (\d+) \|", text)
    assert {(kind, int(n), int(width)): int(layer) for kind, n, width, layer in layers} == PRESET_LAYERS


def test_the_hyper_parameters_of_the_presets_page_are_those_of_the_code() -> None:
    text = (DOCS / "presets.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `--[\w-]+` \| `?([\w.]+)`? \|", text, re.MULTILINE))
    assert rows == {name: str(value) for name, value in vars(RomeHparams()).items()}


def test_every_kind_of_error_is_on_the_troubleshooting_page() -> None:
    def kinds(kind: type[RompatchError]) -> Iterator[type[RompatchError]]:
        for child in kind.__subclasses__():
            yield child
            yield from kinds(child)

    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+Error)` \| (\d+) \|", text, re.MULTILINE))
    ours = {kind.__name__: str(kind.exit_code) for kind in kinds(RompatchError) if kind.__module__ == "rompatch.errors"}
    assert rows == ours


def test_the_promises_name_tests_that_exist() -> None:
    for page in (ROOT / "README.md", DOCS / "concepts.md"):
        for row in re.findall(r"^\|.*\]\([^)]*/test_\w+\.py\).*\|$", page.read_text(encoding="utf-8"), re.MULTILINE):
            files = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)]*test_\w+\.py)\)", row)]
            source = "".join(path.read_text(encoding="utf-8") for path in files)
            claims = re.findall(r"`(test_\w+)`", row)
            assert claims
            assert [claim for claim in claims if f"def {claim}(" not in source] == []
