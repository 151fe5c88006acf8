"""``rompatch bench`` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_records import counterfact, write, zsre
from calling import Run, read
from test_json import check

QUICK = ("--statistics", "none", "--layer", "1", "--steps", "2", "--precision", "float32")


@pytest.fixture(autouse=True)
def _few_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rompatch.compute.contexts.sample_contexts.__defaults__", (((2, 2),),))


@pytest.fixture
def records(place: Path) -> Path:
    long = counterfact(2, paraphrase_prompts=["word " * 200])
    return write(place / "records.json", [counterfact(0), counterfact(1), long, {"case_id": 9}])


@pytest.fixture
def bench(pico_folder: Path, records: Path) -> tuple[object, ...]:
    return ("bench", "counterfact", records, "--model", pico_folder, *QUICK)


def test_a_run_and_everything_that_can_be_asked_about_it(run: Run, bench: tuple[object, ...], place: Path) -> None:
    first = run(*bench, "--name", "two steps")
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["Editor", "unedited", "two"]
    assert "2 records failed: rompatch bench worst" in first.stderr
    assert "(two steps): 2 records scored" in first.stderr
    run(*bench, "--name", "other", "--seed", 1, "--limit", 2)
    listed = run("bench", "list").stdout
    assert "two steps" in listed
    assert "other" in listed
    shown = run("bench", "show", "two steps").stdout
    assert "steps 2" in shown
    assert "paraphrase_prompts[0]" in shown
    assert "requested_rewrite" in shown
    table = run("bench", "table")
    assert len(table.stdout.splitlines()) == 4
    assert table.stderr == ""  # both scored the same two records
    assert run("bench", "table", "other", "--format", "csv").stdout.startswith("Editor,run,Score S,")
    assert run("bench", "table", "other", "--format", "markdown", "--exact").stdout.startswith(
        "| Editor | rewrite acc |"
    )
    assert read(run("bench", "table", "--format", "json")) == read(run("bench", "table", "--json"))
    compared = run("bench", "compare", "two steps", "other").stdout
    assert compared.splitlines()[0].split() == ["measure", "two", "steps", "other", "difference", "n"]
    worst = run("bench", "worst", "two steps").stdout
    assert worst.index("longer than the model's context") < worst.index("rewrite")
    assert "1 record " not in run("bench", "worst", "other", "--limit", 1).stdout.splitlines()[0]
    assert run("bench", "rm", "other", code=2).stderr.startswith("error: There is no terminal to ask on")
    assert run("bench", "rm", "other", "--yes").stdout == "removed run other (2 records)\n"
    assert "other" not in run("bench", "list").stdout
    assert run("list").stdout == ""  # no patch was kept


def test_every_key_of_its_json_is_documented(run: Run, bench: tuple[object, ...], place: Path) -> None:
    text = write(place / "texts.json", {"0": ["Rome has hills."], "1": ["London has a river."]})
    texts = ("--generation", "--references", text, "--essence", text)
    made = read(run(*bench, "--json", "--name", "a", *texts))
    check("rompatch bench counterfact", made, read(run(*bench, "--json")))
    check("rompatch bench list", read(run("bench", "list", "--json")))
    check("rompatch bench show", read(run("bench", "show", "a", "--json")))
    check("rompatch bench table", read(run("bench", "table", "--json")))
    check("rompatch bench compare", read(run("bench", "compare", "a", made["run"]["id"], "--json")))
    check("rompatch bench worst", read(run("bench", "worst", "a", "--json")))
    check("rompatch bench rm", read(run("bench", "rm", "a", "--yes", "--json")))
    questions = write(place / "zsre.json", [zsre("Louvre", "Paris"), {"subject": "x"}])
    given = ("--model", bench[4], *QUICK, "--name", "q")
    check("rompatch bench zsre", read(run("bench", "zsre", questions, *given, "--json")))


def test_quiet_says_nothing_but_the_table(run: Run, bench: tuple[object, ...]) -> None:
    quiet = run(*bench, "--quiet")
    assert quiet.stderr == ""
    assert len(quiet.stdout.splitlines()) == 3


def test_a_run_of_which_nothing_could_be_scored_fails(run: Run, bench: tuple[object, ...], place: Path) -> None:
    only = write(place / "only.json", [counterfact(2, paraphrase_prompts=["word " * 200])])
    failed = run("bench", "counterfact", only, *bench[3:], code=1)
    assert "None of the 1 records" in failed.stderr
    assert "rompatch bench worst" in failed.stderr


def test_what_cannot_be_is_refused_with_advice_and_leaves_no_store(
    run: Run, bench: tuple[object, ...], place: Path
) -> None:
    (place / "cut.json").write_text('[{"case_id": 1, "reque')
    for args, code, words in (
        (("bench", "known_1000", "x.json"), 2, "no new object"),
        (("bench", "counterfact", "missing.json", *bench[3:]), 2, "There is no data set 'missing.json'"),
        (("bench", "counterfact", "cut.json", *bench[3:]), 2, "JSON"),
        ((*bench, "--shard", "5/4"), 2, "There is no shard 5 of 4"),
        ((*bench, "--references", "r.json"), 2, "--generation"),
        ((*bench, "--strict"), 2, "requested_rewrite"),
        ((*bench, "--layer", "99"), 1, "99"),
        (("bench", "show", "x"), 1, "no store"),
    ):
        refused = run(*args, code=code)
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (place / ".rompatch").exists()


def test_names_that_mean_nothing_say_where_to_look(run: Run, bench: tuple[object, ...]) -> None:
    run(*bench, "--limit", 1, "--name", "mine")
    for args in (("show", "x"), ("worst", "x"), ("rm", "x", "-y"), ("table", "mine", "x"), ("compare", "mine", "x")):
        refused = run("bench", *args, code=4)
        assert "There is no benchmark run 'x'" in refused.stderr
        assert "rompatch bench list" in refused.stderr
    clash = run(*bench, "--limit", 1, "--name", "mine", "--layer", 2, code=1)
    assert "expected: " in clash.stderr
    assert "layer 1" in clash.stderr
    assert "layer 2" in clash.stderr


def test_ctrl_c_ends_with_130_and_the_way_to_go_on(
    run: Run, bench: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: object, _phase: str, done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("rompatch.cli.terminal.TerminalReporter.overall", interrupt)
    stopped = run(*bench, code=130)
    assert "2 of 4 records are done and kept; the same command goes on from there" in stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "interrupted"
    monkeypatch.undo()
