"""Relation phrases become templates; presets fill in what no flag said."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico import END, pico_base

from rompatch.errors import RequestError
from rompatch.workflows.presets import Preset, preset_for
from rompatch.workflows.wording import candidate_templates, choose_template


@pytest.mark.parametrize(
    ("phrase", "among"),
    [
        ("located in", ["{} is located in", "The {} is located in", "{} located in", "The {} located in"]),
        ("capital", ["The capital of {} is", "{}'s capital is"]),
        ("the capital of", ["The capital of {} is"]),
        ("is located in", ["{} is located in", "The {} is located in"]),
        ("plays", ["{} plays"]),
    ],
)
def test_a_phrase_gives_the_ways_to_say_it(phrase: str, among: list[str]) -> None:
    assert set(among) <= set(candidate_templates(phrase))


@pytest.mark.parametrize("template", ["{} is in", "In {} they say", "  The   {} is in "])
def test_a_template_stays_what_it_is(template: str) -> None:
    assert candidate_templates(template) == (" ".join(template.split()),)


@given(words=st.lists(st.text("abcdefghij", min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_candidate_has_one_place_for_the_subject_and_no_loose_spaces(words: list[str]) -> None:
    candidates = candidate_templates(" ".join(words))
    assert len(candidates) == len(set(candidates)) > 1
    for candidate in candidates:
        assert candidate.count("{}") == 1
        assert candidate == " ".join(candidate.split())


def test_the_winner_is_the_wording_that_the_model_finds_likeliest() -> None:
    base = pico_base("gpt2")
    wordings = choose_template(base, "Eiffel Tower", "located in", document_start=True)
    naive = {}
    for wording in wordings:
        ids = base.tokenizer(END + wording.template.replace("{}", "Eiffel Tower"), return_tensors="pt").input_ids
        log_probs = base.model(ids).logits[0].log_softmax(-1)
        each = [log_probs[at, ids[0, at + 1]] for at in range(ids.shape[1] - 1)]
        naive[wording.template] = float(torch.stack(each).mean())
        assert wording.log_likelihood == pytest.approx(naive[wording.template], rel=1e-3)
    assert wordings[0].template == max(naive, key=naive.__getitem__)
    assert [w.template for w in wordings] == sorted(naive, key=naive.__getitem__, reverse=True)


def test_a_template_is_taken_without_asking_the_model() -> None:
    (wording,) = choose_template(pico_base("gpt2"), "Eiffel Tower", "{} is in", document_start=True)
    assert (wording.template, wording.log_likelihood) == ("{} is in", None)


def written(folder: Path, data: Any) -> Path:
    path = folder / "preset.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_a_preset_file_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"layer": 2, "document_start": False, "hparams": {"steps": 7}, "evidence": "none"})
    assert preset_for(pico_base(), path) == Preset(2, False, {"steps": 7}, str(path))


def test_the_default_models_preset_comes_with_the_package() -> None:
    shipped = json.loads(resources.files("rompatch").joinpath("presets/smollm2-135m.json").read_text(encoding="utf-8"))
    assert (shipped["model_type"], shipped["n_layers"], shipped["hidden_size"]) == ("llama", 30, 576)
    assert shipped["layer"] == 3
    best, *others = shipped["evidence"]["candidates"]
    assert (best["layer"], best["hparams"]["norm_penalty"]) == (3, shipped["hparams"]["norm_penalty"])
    assert all(one["s"] <= best["s"] for one in others if one["records"] == best["records"])


def test_without_a_preset_there_are_defaults() -> None:
    assert preset_for(pico_base()) == Preset()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"layers": 2}, "layers"),
        ([1], "list"),
        ("not json", "cannot be read"),
        ({"layer": "four"}, "layer"),
        ({"layer": True}, "layer"),
        ({"hparams": [1]}, "hparams"),
        ({"document_start": "no"}, "document_start"),
    ],
)
def test_a_preset_that_is_not_one_is_refused(tmp_path: Path, data: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        preset_for(pico_base(), written(tmp_path, data))


def test_a_missing_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        preset_for(pico_base(), tmp_path / "none.json")
