"""``rompatch tune`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_records import counterfact, write
from calling import Run, read
from test_json import check

from rompatch.bench import running
from rompatch.errors import ComputeError
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import open_store

QUICK = ("--statistics", "none", "--precision", "float32", "--steps", "2")


@pytest.fixture(autouse=True)
def _few_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rompatch.compute.contexts.sample_contexts.__defaults__", (((2, 2),),))


@pytest.fixture
def records(place: Path) -> Path:
    return write(place / "tuning.json", [{"case_id": 9}, *(counterfact(number) for number in range(5))])


@pytest.fixture
def tune(pico_folder: Path, records: Path) -> tuple[object, ...]:
    return ("tune", records, "--model", pico_folder, "--rung", 2, *QUICK)


def test_the_better_half_goes_on_and_the_preset_of_the_best_is_taken_by_create(
    run: Run, tune: tuple[object, ...], place: Path
) -> None:
    made = run(*tune, "--layers", "0-2", "--keys", "mixed,mean", "--out", "preset.json")
    lines = made.stdout.splitlines()
    assert lines[0].split()[:4] == ["candidate", "records", "failed", "ES"]
    assert len(lines) == 7
    assert "rung 1: 6 candidates on 2 records, going on with layer" in made.stderr
    assert "rung 2: 3 candidates on 4 records, going on with layer" in made.stderr
    assert "rung 3: 2 candidates on 6 records, the best is layer" in made.stderr
    assert "1 record of the best candidate failed: rompatch bench worst" in made.stderr
    preset = json.loads((place / "preset.json").read_text())
    best = preset["evidence"]["candidates"][0]
    assert lines[1].startswith(best["label"])
    assert (preset["layer"], preset["hparams"]["keys"]) == (best["layer"], best["hparams"]["keys"])
    assert (preset["evidence"]["dataset"], preset["evidence"]["records"]) == ("tuning.json", 6)
    assert [one["records"] for one in preset["evidence"]["candidates"]] == [6, 6, 4, 2, 2, 2]
    given = ("--preset", "preset.json", "--model", tune[3], "--statistics", "none", "--dry-run", "--json")
    planned = read(run("create", "Big Ben", "located in", "Rome", *given))["plan"]
    assert (planned["layer"], planned["hparams"]["steps"]) == (preset["layer"], 2)


def test_values_spread_over_layers_are_tried_with_statistics_of_each(
    run: Run, tune: tuple[object, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rompatch.compute.statistics._SAMPLE_TOKENS", 8)
    plain = [one for one in tune if one not in ("--statistics", "none")]
    grid = (
        "--layers",
        "1",
        "--keys",
        "both",
        "--spread",
        "1,2",
        "--gain",
        "1.2",
        "--statistics",
        "auto",
        "--tokens",
        40,
    )
    made = run(*plain, *grid, "--tokens", 40, "--out", "preset.json")
    assert "no key statistics for layers 0, 1 yet" in made.stderr
    hparams = json.loads((place / "preset.json").read_text())["hparams"]
    assert (hparams["keys"], hparams["gain"]) == ("both", 1.2)
    assert hparams["spread"] in (1, 2)


def test_the_same_command_computes_nothing_again_and_says_the_same(
    run: Run, tune: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(*tune, "--layers", "0,2")
    monkeypatch.setattr(running, "compute_many", None)
    assert run(*tune, "--layers", "0,2").stdout == first.stdout
    assert len(run("bench", "list").stdout.splitlines()) == 3  # a candidate is a run, its header aside


def test_ctrl_c_says_how_to_go_on_and_what_is_done_is_kept(
    run: Run, tune: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def interrupt(_self: object, phase: str, done: int, total: int) -> None:
        heard.append((phase, done, total))
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("rompatch.cli.terminal.TerminalReporter.overall", interrupt)
    stopped = run(*tune, "--layers", "1-2", code=130)
    assert "every record that is done is kept; the same command goes on from there" in stopped.stderr
    assert heard[:2] == [("layer 1", 0, 4), ("layer 1 (1 failed)", 1, 4)]
    assert heard[-1] == ("layer 2 (1 failed)", 3, 4)
    heard.clear()
    monkeypatch.setattr("rompatch.cli.terminal.TerminalReporter.overall", lambda _self, *told: heard.append(told))
    assert "the best is layer" in run(*tune, "--layers", "1-2").stderr
    assert heard == [("layer 2", 3, 4), ("layer 2", 4, 4)]  # layer 1 was done


def test_a_candidate_that_only_fails_is_dropped_with_its_reason(
    run: Run, tune: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_many = running.compute_many

    def broken(base: Any, requests: Any, **given: Any) -> Any:
        if given["site"].layer == 1:
            return iter([(place, ComputeError("The loss is NaN.")) for place in range(len(requests))])
        return compute_many(base, requests, **given)

    monkeypatch.setattr(running, "compute_many", broken)
    made = run(*tune, "--layers", "0-2")
    assert made.stdout.splitlines()[-1].startswith("layer 1")
    assert "dropped layer 1: The loss is NaN." in made.stderr
    nobody = run(*tune, "--layers", "1", code=1)
    assert "No candidate could be scored on a single record" in nobody.stderr
    assert "layer 1: " in nobody.stderr


def test_every_key_of_its_json_is_documented(run: Run, tune: tuple[object, ...]) -> None:
    more = ("--layers", "1-2", "--lr", "0.5,0.25", "--json")
    check("rompatch tune", read(run(*tune, *more)), read(run(*tune, *more, "--out", "preset.json")))


def test_layers_without_statistics_are_refused_unless_some_are_asked_for(
    run: Run, tune: tuple[object, ...], place: Path
) -> None:
    quick = ("--precision", "float32", "--steps", "2", "--rung", 2, "--limit", 3)
    bare = ("tune", tune[1], "--model", tune[3], *quick, "--layers", "0-1")
    refused = run(*bare, code=1)
    assert "none at 0, 1" in refused.stderr
    assert "--corpus FILE" in refused.stderr
    assert not (place / ".rompatch").exists()
    sampled = run(*bare, "--statistics", "auto", "--tokens", "300")
    assert sampled.stderr.count("no key statistics for layers 0, 1 yet: sampling 300 tokens") == 1
    assert run(*bare).stdout == sampled.stdout  # those at hand now
    (place / "text.txt").write_text("The Colosseum is in Rome. " * 200)
    assert "the best is layer" in run(*bare, "--corpus", "text.txt", "--tokens", "300").stderr


def test_what_cannot_be_is_refused_with_advice_and_leaves_no_store(
    run: Run, tune: tuple[object, ...], place: Path
) -> None:
    (place / "cut.json").write_text('[{"case_id": 1, "reque')
    (place / "there.json").write_text("{}")
    some = ("--layers", "1-2")
    for args, code, words in (
        (tune, 2, "--layers"),
        ((*tune, "--layers", "1-99999"), 1, "3"),
        ((*tune, "--layers", "2-1"), 2, "write 1-2"),
        ((*tune, "--layers", "1,x"), 2, "neither a layer"),
        ((*tune, "--layers", "1,0-2"), 2, "layers names 1 twice"),
        ((*tune, *some, "--lr", ""), 2, "nothing to try"),
        ((*tune, *some, "--lr", "0.5,"), 2, "no list of numbers"),
        ((*tune, *some, "--kl-factor", "1,nan"), 2, "no finite number"),
        ((*tune, *some, "--keys", "mixed,odd"), 2, "There is no key mode 'odd'"),
        ((*tune, *some, "--steps", "0"), 2, "at least 1"),
        ((*tune, *some, "--limit", "1"), 2, "fewer records than the first rung"),
        ((*tune, *some, "--rung", "6"), 2, "5 of 6"),
        ((*tune, *some, "--corpus", "text.txt"), 2, "not from both"),
        ((*tune, *some, "--out", "there.json"), 1, "--force"),
        ((*tune, *some, "--out", "nowhere/preset.json"), 1, "no folder"),
        (("tune", "cut.json", *tune[2:], *some), 2, "JSON"),
        (("tune", "missing.json", *tune[2:], *some), 2, "There is no data set 'missing.json'"),
    ):
        refused = run(*args, code=code)
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (place / ".rompatch").exists()
    run(*tune, "--layers", "1", "--limit", 2, "--out", "there.json", "--force")
    assert json.loads((place / "there.json").read_text())["layer"] == 1


def test_python_callers_get_frozen_records(pico_folder: Path, records: Path, place: Path) -> None:
    with open_store(place / ".rompatch") as store:
        tuned = store.tune(
            records,
            layers=range(2),
            grid={"steps": [1, 2]},
            rung=2,
            statistics="none",
            precision="float32",
            spec=BaseSpec(str(pico_folder)),
        )
        assert [(rung.records, rung.candidates, rung.kept) for rung in tuned.rungs] == [(2, 4, 2), (4, 2, 1)]
        assert (tuned.best.records, tuned.best.scored, tuned.best.failed) == (4, 3, 1)
        results = store.bench_results(str(tuned.best.run))
        s = [one.measures["after"]["es"] for one in results if one.status == "scored"]
        assert tuned.best.estimates["es"] is not None
        assert tuned.best.estimates["es"].value == pytest.approx(sum(s) / len(s))
        with pytest.raises(AttributeError):
            tuned.best.failed = 0  # type: ignore[misc]
