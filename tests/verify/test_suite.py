from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_records import COUNTERFACT

from rompatch.edits import EditRequest, same_text
from rompatch.errors import SuiteError
from rompatch.verify.atlas import bare_subject, load_atlas
from rompatch.verify.building import (
    load_suite,
    relation_of,
    suite_for,
    suite_from_counterfact,
    suite_from_zsre,
    true_object_of,
)
from rompatch.verify.reading import load_counterfact
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.suite import Suite
from rompatch.verify.zsre import ZsreRecord

TOWER = EditRequest("Eiffel Tower", "The {} is located in", "Rome", "Paris", "located in")


def record() -> dict[str, Any]:
    """A record of our own in the schema of COUNTERFACT, with three neighbours."""
    neighbours = ["The Eiffel Tower is in", "The Sorbonne is in", "The Moulin Rouge is in"]
    return copy.deepcopy(COUNTERFACT) | {"neighborhood_prompts": neighbours}


def texts(suite: Suite, kind: Any) -> list[str]:
    return [prompt.text for prompt in suite.of_kind(kind)]


def test_the_tower_gets_paraphrases_neighbours_and_attributes_from_the_atlas() -> None:
    suite = suite_for(TOWER)
    assert suite.source == "atlas:located_in_city"
    assert suite.untested == ()
    assert texts(suite, "rewrite") == ["The Eiffel Tower is located in"]
    paraphrases = texts(suite, "paraphrase")
    assert "To see the Eiffel Tower, travel to" in paraphrases
    assert "The Eiffel Tower is located in" not in paraphrases
    assert all("Eiffel Tower" in text for text in paraphrases)
    assert len(paraphrases) >= 5
    assert len(suite.of_kind("neighbourhood")) == 10
    assert len(suite.of_kind("attribute")) == 5


def test_neighbours_share_the_true_object_first_and_never_have_the_new_one() -> None:
    neighbours = suite_for(TOWER, limit_neighbours=50).of_kind("neighbourhood")
    trues = [prompt.target_true for prompt in neighbours]
    n_paris = trues.count("Paris")
    assert n_paris >= 5
    assert trues[:n_paris] == ["Paris"] * n_paris
    assert "Rome" not in trues
    assert len(set(trues[n_paris : n_paris + 5])) == 5  # then one of each other object in turn
    assert all(prompt.target_new == "Rome" for prompt in neighbours)
    assert not any("Eiffel" in prompt.text for prompt in neighbours)


def test_a_shorter_spelling_of_the_new_object_keeps_its_subjects_out_too() -> None:
    for new in ("Rome, Italy", "Rome", "the city of Rome"):
        neighbours = suite_for(EditRequest("Eiffel Tower", "The {} is located in", new, "Paris"), 60)
        assert neighbours.of_kind("neighbourhood")
        assert not any("Colosseum" in prompt.text for prompt in neighbours.of_kind("neighbourhood"))
    suite = suite_for(EditRequest("Psycho", "{} was directed by", "Spielberg", "Hitchcock", "directed by"), 60)
    trues = [prompt.target_true for prompt in suite.of_kind("neighbourhood")]
    assert "Steven Spielberg" not in trues
    assert trues[0] == "Alfred Hitchcock"


def test_neighbours_are_spread_over_several_wordings() -> None:
    relation = relation_of(TOWER)
    assert relation is not None
    starts = Counter(
        next(t for t in relation.templates if all(part in prompt.text for part in t.split("{}") if part))
        for prompt in suite_for(TOWER).of_kind("neighbourhood")
    )
    assert len(starts) >= 4
    assert max(starts.values()) <= 3


def test_the_same_request_gives_the_same_suite() -> None:
    assert suite_for(TOWER) == suite_for(TOWER)


def test_limits_are_kept() -> None:
    suite = suite_for(TOWER, limit_neighbours=3, limit_paraphrases=2, limit_attributes=0)
    assert Counter(prompt.kind for prompt in suite.prompts) == {"rewrite": 1, "paraphrase": 2, "neighbourhood": 3}


def test_the_atlas_supplies_the_true_object_when_the_request_has_none() -> None:
    request = EditRequest("Eiffel Tower", "{} is located in", "Rome", relation="located in")
    assert true_object_of(request) == "Paris"
    suite = suite_for(request)
    assert suite.prompts[0].target_true == "Paris"
    assert "To see the Eiffel Tower, travel to" in texts(suite, "paraphrase")  # the atlas knows the article too


def test_without_a_true_object_the_suite_says_what_is_not_scored() -> None:
    request = EditRequest("Tokyo Dome", "{} is located in", "Rome", relation="located in")
    suite = suite_for(request)
    assert suite.prompts[0].target_true is None
    assert len(suite.untested) == 1
    assert "--true" in suite.untested[0]
    assert all(prompt.target_true for prompt in suite.of_kind("neighbourhood"))


def test_an_unknown_relation_leaves_only_the_rewrite_and_says_so() -> None:
    request = EditRequest("Albert Einstein", "{} is afraid of", "spiders", "snakes", "is afraid of")
    suite = suite_for(request)
    assert [prompt.kind for prompt in suite.prompts] == ["rewrite"]
    assert suite.untested == (
        "no relation of the atlas matches 'is afraid of': paraphrase and neighbourhood not tested; give --suite FILE",
    )


def test_an_object_without_other_subjects_is_mentioned() -> None:
    suite = suite_for(EditRequest("France", "The capital of {} is", "Rome", "Paris", "capital of"))
    assert "no other subject" in suite.untested[0]
    assert len(suite.of_kind("neighbourhood")) == 10


@pytest.mark.parametrize("relation", load_atlas(), ids=lambda relation: relation.id)
def test_every_fact_of_the_atlas_gets_a_whole_suite(relation) -> None:
    for position in (0, len(relation.facts) // 2, len(relation.facts) - 1):
        fact = relation.facts[position]
        new = next(one.object for one in relation.facts if one.object != fact.object)
        suite = suite_for(EditRequest(fact.subject, relation.templates[0], new, fact.object, relation.phrases[0]))
        assert suite.source == f"atlas:{relation.id}"
        assert len(suite.of_kind("paraphrase")) == len(relation.templates) - 1
        assert len(suite.of_kind("neighbourhood")) == 10
        for prompt in suite.of_kind("neighbourhood"):
            assert not same_text(prompt.target_true or "", new)
            assert "the the" not in prompt.text.casefold()
        assert bare_subject(fact.subject) in suite.prompts[0].text.casefold()


def test_suites_survive_their_json_form(tmp_path: Path) -> None:
    for suite in (suite_for(TOWER), suite_from_counterfact(record())):
        file = tmp_path / "suite.json"
        file.write_text(json.dumps(suite.to_json(), ensure_ascii=False), encoding="utf-8")
        assert load_suite(file) == suite


def test_a_counterfact_record_becomes_a_suite() -> None:
    suite = suite_from_counterfact(record())
    assert suite.source == "COUNTERFACT record 7"
    assert texts(suite, "rewrite") == ["The Louvre can be found in"]
    assert Counter(prompt.kind for prompt in suite.prompts) == {
        "rewrite": 1, "paraphrase": 2, "neighbourhood": 3, "attribute": 1, "generation": 1,
    }  # fmt: skip
    assert {(prompt.target_new, prompt.target_true) for prompt in suite.prompts} == {("Rome", "Paris")}


def test_a_record_without_paraphrases_says_so() -> None:
    short = record()
    del short["paraphrase_prompts"]
    assert suite_from_counterfact(short).untested == ("the record has no paraphrase_prompts: paraphrase not tested",)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_suite_file_may_be_one_record_or_a_list_of_one(tmp_path: Path, wrapped: bool) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps([record()] if wrapped else record()), encoding="utf-8")
    assert load_suite(file) == suite_from_counterfact(record())
    assert load_counterfact(file) == [CounterfactRecord.from_json(record())]


def broken(path: str, value: Any) -> dict[str, Any]:
    """The record with the field at *path* replaced, or removed when *value* is None."""
    entry = record()
    *parents, last = path.split(".")
    place = entry
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return entry


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("requested_rewrite", None),
        ("requested_rewrite", "text"),
        ("requested_rewrite.subject", ""),
        ("requested_rewrite.prompt", "no place"),
        ("requested_rewrite.prompt", 3),
        ("requested_rewrite.target_new", None),
        ("requested_rewrite.target_true", "Paris"),
        ("requested_rewrite.target_true.str", 5),
        ("neighborhood_prompts", "text"),
        ("neighborhood_prompts", ["fine", None]),
        ("paraphrase_prompts", [" "]),
    ],
)
def test_broken_records_are_refused_by_record_and_field(tmp_path: Path, path: str, value: Any) -> None:
    file = tmp_path / "records.json"
    file.write_text(json.dumps([record() | {"case_id": 6}, broken(path, value)]), encoding="utf-8")
    with pytest.raises(SuiteError, match="record 7") as caught:
        load_counterfact(file)
    assert path in str(caught.value)
    assert caught.value.expected


def test_a_record_without_case_id_is_named_by_position(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    file.write_text(json.dumps([record(), {"paraphrase_prompts": []}]), encoding="utf-8")
    with pytest.raises(SuiteError, match="Record 1 of the file"):
        load_counterfact(file)


def test_a_record_with_equal_objects_is_refused() -> None:
    with pytest.raises(SuiteError, match=r"record 7 \(record 0 of the file\) asks for an impossible edit"):
        suite_from_counterfact(broken("requested_rewrite.target_new.str", "Paris"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty file"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be about one edit"),
        ("3", "holds no suite"),
        ('{"a": 1}', "holds no suite"),
        ('{"rompatch_suite": 2}', "does not read"),
        ('{"rompatch_suite": 1}', "no prompts"),
        ('{"rompatch_suite": 1, "name": "n", "source": "s", "prompts": [7]}', "prompt 0"),
        ('{"rompatch_suite": 1, "name": "n", "source": "s", "prompts": [{"kind": "x"}]}', "'kind'"),
        ('{"rompatch_suite": 1, "name": "n", "source": "s", "prompts": [{"kind": "rewrite"}]}', "'text'"),
        ('{"rompatch_suite": 1, "prompts": [{"kind": "rewrite"}]}', "'name'"),
        ('{"rompatch_suite": 1, "untested": "x", "prompts": [{"kind": "rewrite"}]}', "'untested'"),
    ],
)
def test_files_that_hold_no_suite_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "suite.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SuiteError, match=message):
        load_suite(file)


def test_two_records_are_no_suite(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    file.write_text(json.dumps([record(), record()]), encoding="utf-8")
    with pytest.raises(SuiteError, match="must be about one edit"):
        load_suite(file)


def test_unreadable_suite_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"nowhere\.json"):
        load_suite(tmp_path / "nowhere.json")
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(SuiteError, match="not JSON"):
        load_suite(tmp_path / "latin.json")


def test_a_zsre_record_becomes_a_suite_for_either_object() -> None:
    entry = {
        "subject": "Mozart",
        "src": "Where was Mozart born?",
        "rephrase": "Mozart was born where?",
        "pred": "Vienna",
    }
    entry |= {"alt": "Berlin", "answers": ["Salzburg"], "loc": "nq question: who wrote faust", "loc_ans": "Goethe"}
    zsre = ZsreRecord.from_json({**entry, "cond": "Vienna >> Berlin || Where was Mozart born?"}, 5)
    suite = suite_from_zsre(zsre)
    assert suite.source == "zsRE record 5"
    assert [(prompt.kind, prompt.text, prompt.target_new, prompt.target_true) for prompt in suite.prompts] == [
        ("rewrite", "Where was Mozart born?", "Salzburg", None),
        ("paraphrase", "Mozart was born where?", "Salzburg", None),
        ("neighbourhood", "nq question: who wrote faust?", "Salzburg", "Goethe"),
    ]
    assert {prompt.target_new for prompt in suite_from_zsre(zsre, "alternative").prompts} == {"Berlin"}
    assert "exact success" in suite.untested[0]
