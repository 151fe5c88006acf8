"""verify --stack from the command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from calling import QUICK, Run, contents, read

BIG_BEN = ("create", "Big Ben", "located in", "Rome")


@pytest.fixture
def stacked(run: Run, made: str) -> tuple[str, str]:
    """Two active patches on the pico model."""
    other = str(read(run(*BIG_BEN, *QUICK, "--json"))["id"])
    run("apply", made, other)
    return made, other


def test_a_stack_is_printed_worst_first_with_its_drift(run: Run, stacked: tuple[str, str]) -> None:
    result = run("verify", "--stack", "--min-es", 0)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["stack", "revision", "patches", "scores"]
    for identity in stacked:
        assert sum(line.startswith(identity[:12]) and " -> " in line for line in lines) >= 1
    assert any(line.startswith("mean ") for line in lines)
    assert any(line.startswith("perplexity") and " -> " in line and line.endswith("%)") for line in lines)
    assert "tokens of the built-in text" in result.stdout
    assert "recorded as run 3" in result.stderr, "two patches alone, then the stack"
    again = run("verify", "--stack", "--min-es", 0, "--no-drift").stdout
    assert "run 1" in again
    assert "perplexity" not in again
    assert "the stack: run 3" in run("log").stdout


def test_a_rewrite_prompt_that_fails_ends_with_3_and_is_named(run: Run, stacked: tuple[str, str], place: Path) -> None:
    """Three steps on a random model do not make an edit."""
    result = run("verify", "--stack", "--junit", "report.xml", "--no-drift", code=3)
    assert "gates missed:" in result.stdout
    assert "rewrite prompts fail" in result.stderr
    assert "recorded as run" in result.stderr
    root = ET.parse(place / "report.xml").getroot()  # noqa: S314 - our own file
    assert {suite.get("name", "")[:12] for suite in root} == {identity[:12] for identity in stacked}
    assert int(root.attrib["failures"]) >= 1
    data = read(run("verify", "--stack", "--no-drift", "--json", code=3))
    assert sum(not gate["passed"] for gate in data["gates"]) == len(data["missed_gates"])
    failing = [one for patch in data["patches"] for one in patch["prompts"] if one["kind"] == "rewrite"]
    assert int(root.attrib["failures"]) == sum(not one["passed"] for one in failing)


def test_gates_reach_every_patch_and_the_model(run: Run, stacked: tuple[str, str], place: Path) -> None:
    (place / "text.txt").write_text("The Eiffel Tower is in Paris. Big Ben is in London.\n" * 5)
    gates = ("--min-s", 0, "--min-es", 0, "--min-ps", 0, "--min-ns", 0, "--max-loss", 100, "--max-drift", 1000)
    data = read(run("verify", "--stack", *gates, "--drift", "text.txt", "--json"))
    assert [gate["gate"] for gate in data["gates"]] == ["s", "es", "ps", "ns", "loss"] * 2 + ["drift"]
    assert (data["missed_gates"], data["drift"]["text"]) == ([], "text.txt")
    assert {gate["limit"] for gate in data["gates"]} == {0, 1, 10}


def test_a_patch_s_report_is_written_as_well(run: Run, made: str, place: Path) -> None:
    run("verify", made, "--junit", "report.xml", "--no-record")
    root = ET.parse(place / "report.xml").getroot()  # noqa: S314
    assert (len(root), root.get("failures")) == (1, "0")
    run("verify", made, "--junit", "report.xml", "--min-s", 100, "--no-record", code=3)
    root = ET.parse(place / "report.xml").getroot()  # noqa: S314
    assert root.get("failures") == "1"


USAGE: dict[str, tuple[tuple[object, ...], str]] = {
    "neither": ((), "Name a patch, or give --stack."),
    "both": (("Eiffel Tower", "--stack"), "leave 'Eiffel Tower' out"),
    "a suite": (("--stack", "--suite", "x.json"), "--suite does not go with --stack"),
    "in stack": (("--stack", "--in-stack"), "--in-stack does not go with --stack"),
    "loss": (("Eiffel Tower", "--max-loss", 0), "--max-loss needs --stack"),
    "drift": (("Eiffel Tower", "--drift", "x.txt"), "--drift needs --stack"),
    "no baseline": (("Eiffel Tower", "--no-baseline"), "--no-baseline needs --stack"),
    "s out of range": (("--stack", "--min-s", 101), "must lie between 0 and 100"),
    "loss out of range": (("--stack", "--max-loss", -1), "must lie between 0 and 100"),
    "drift out of range": (("--stack", "--max-drift", "nan"), "0 or more"),
    "drift both ways": (("--stack", "--no-drift", "--max-drift", 1), "Drift is not measured"),
    "drift file": (("--stack", "--drift", "nowhere.txt"), "'nowhere.txt'"),
}


@pytest.mark.parametrize("what", USAGE)
def test_a_call_that_makes_no_sense_is_refused(run: Run, made: str, place: Path, what: str) -> None:
    args, words = USAGE[what]
    run("apply", made)
    before = contents(place)
    result = run("verify", *args, code=2)
    assert words in result.stderr
    assert result.stdout == ""
    assert contents(place) == before


def test_a_report_with_no_place_to_go_is_refused_before_anything_is_scored(run: Run, made: str, place: Path) -> None:
    run("apply", made)
    before = contents(place)
    assert "cannot be written" in run("verify", "--stack", "--junit", "nowhere/report.xml", code=1).stderr
    assert "cannot be written" in run("verify", made, "--junit", ".", code=1).stderr
    assert contents(place) == before


def test_an_empty_stack_and_a_missing_file_are_errors_of_the_store(run: Run, made: str, place: Path) -> None:
    result = run("verify", "--stack", code=1)
    assert "The stack is empty, so there is nothing to verify." in result.stderr
    run("apply", made)
    (place / ".rompatch" / "patches" / f"{made}.safetensors").unlink()
    assert f"file of patch {made[:12]} is missing" in run("verify", "--stack", code=1).stderr
