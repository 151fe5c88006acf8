"""Records of the three data sets: what is read, and what is refused with the record's and the field's name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pico import CONTEXT, toy_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rompatch.errors import SuiteError, TargetError
from rompatch.verify.checking import check_record
from rompatch.verify.jsonfile import read_json
from rompatch.verify.known import KnownFact
from rompatch.verify.reading import FormName, Record, RecordSet, load_counterfact, parse_records, read_records
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.zsre import ZsreRecord

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} can be found in",
        "relation_id": "P276",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "subject": "The Louvre",
    },
    "paraphrase_prompts": ["It rained. The Louvre lies in", "Where to go? The Louvre is in"],
    "neighborhood_prompts": ["The Eiffel Tower is in"],
    "attribute_prompts": ["The Colosseum is in"],
    "generation_prompts": ["The Louvre is surrounded by"],
}
KNOWN = {
    "known_id": 3,
    "subject": "Big Ben",
    "attribute": "London",
    "template": "{} is in",
    "prediction": " London, the capital",
    "prompt": "Big Ben is in the city of",
    "relation_id": "P276",
}
ZSRE = {
    "subject": "Mozart",
    "src": "Where was Mozart born?",
    "pred": "Vienna",
    "rephrase": "What is the birthplace of Mozart?",
    "alt": "Berlin",
    "answers": ["Salzburg", "the city of Salzburg"],
    "loc": "nq question: who built the eiffel tower",
    "loc_ans": "Gustave Eiffel",
    "cond": "Vienna >> Berlin || Where was Mozart born?",
}
ENTRIES: dict[FormName, dict[str, Any]] = {"counterfact": COUNTERFACT, "known_1000": KNOWN, "zsre": ZSRE}
FORMS = list(ENTRIES)


def changed(entry: dict[str, Any], path: str, value: Any = ...) -> dict[str, Any]:
    """A copy with the field at *path* replaced, or removed."""
    whole = copy.deepcopy(entry)
    *parents, last = path.split(".")
    place = whole
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return whole


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_counterfact_record_is_read_with_everything_in_it() -> None:
    record = CounterfactRecord.from_json(COUNTERFACT)
    assert (record.case_id, record.name, record.subject) == (7, "COUNTERFACT record 7", "The Louvre")
    assert record.request.prompt == "The Louvre can be found in"
    assert (record.request.target_new, record.request.target_true) == ("Rome", "Paris")
    assert (record.relation_id, record.target_new_id, record.target_true_id) == ("P276", "Q220", "Q90")
    assert record.paraphrase_prompts == ("It rained. The Louvre lies in", "Where to go? The Louvre is in")
    assert [(field, objects) for field, _, objects in record.contests()] == [
        ("requested_rewrite.prompt", ("Rome", "Paris")),
        ("paraphrase_prompts[0]", ("Rome", "Paris")),
        ("paraphrase_prompts[1]", ("Rome", "Paris")),
        ("neighborhood_prompts[0]", ("Rome", "Paris")),
        ("attribute_prompts[0]", ("Rome", "Paris")),
        ("generation_prompts[0]", ()),
    ]


def test_a_known_facts_prompt_becomes_its_template() -> None:
    fact = KnownFact.from_json(KNOWN)
    assert (fact.case_id, fact.name) == (3, "known_1000 record 3")
    assert fact.template == "{} is in the city of", "the prompt's, not the shorter one in the file"
    request = fact.request("Rome")
    assert (request.prompt, request.target_new, request.target_true) == (fact.prompt, "Rome", "London")
    with pytest.raises(TargetError):
        fact.request("London")


def test_a_zsre_record_is_read_with_both_objects_that_people_teach() -> None:
    record = ZsreRecord.from_json(ZSRE, 12)
    assert (record.case_id, record.name) == (12, "zsRE record 12")
    assert record.template == "Where was {} born?"
    assert record.request().target_new == "Salzburg"
    assert record.request("alternative").target_new == "Berlin"
    assert record.request().prompt == record.question
    assert record.request().target_true is None
    assert record.locality_prompt == "nq question: who built the eiffel tower?"
    assert ("loc", record.locality_prompt, ("Gustave Eiffel",)) in list(record.contests())


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Art", "The Artist Art was born in", "The Artist {} was born in"),
        ("東京", "日本の首都東京は", "日本の首都{}は"),
        ("Rome", "Rome is older than Rome Street", "{} is older than Rome Street"),
        ("U.S.", "The U.S. is in", "The {} is in"),
    ],
)
def test_the_subjects_place_is_a_whole_word_where_there_is_one(subject: str, prompt: str, template: str) -> None:
    assert KnownFact.from_json({**KNOWN, "subject": subject, "prompt": prompt}).template == template


@pytest.mark.parametrize("form", FORMS)
def test_a_file_tells_which_data_set_it_is(tmp_path: Path, form: FormName) -> None:
    found = read_records(written(tmp_path / "data.json", [ENTRIES[form]]))
    assert (found.form, found.total, found.problems) == (form, 1, ())
    assert read_records(written(tmp_path / "data.json", ENTRIES[form])).records == found.records, "a single record"


REQUIRED = [
    *(
        ("counterfact", f"requested_rewrite{rest}")
        for rest in ("", ".prompt", ".subject", ".target_new", ".target_true")
    ),
    *(("counterfact", field) for field in ("case_id", "requested_rewrite.target_new.str")),
    *(("known_1000", field) for field in ("known_id", "subject", "attribute", "prompt")),
    *(("zsre", field) for field in ZSRE),
]


@pytest.mark.parametrize(("form", "field"), REQUIRED)
def test_a_missing_field_is_named_with_its_record(form: FormName, field: str) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_records([changed(ENTRIES[form], field)], form)
    assert caught.value.facts["field"] == field
    assert f"no field {field!r}" in str(caught.value)
    assert "ecord 0 of the file" in str(caught.value)
    assert caught.value.expected
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("form", "field", "value"),
    [
        ("counterfact", "case_id", "7"),
        ("counterfact", "case_id", True),
        ("counterfact", "case_id", -1),
        ("counterfact", "case_id", 2**63),
        ("counterfact", "case_id", float("nan")),
        ("counterfact", "pararel_idx", float("inf")),
        ("counterfact", "requested_rewrite.prompt", "The Louvre is in"),
        ("counterfact", "requested_rewrite.prompt", "{} and {}"),
        ("counterfact", "requested_rewrite.subject", " "),
        ("counterfact", "requested_rewrite.subject", "\ud800"),
        ("counterfact", "requested_rewrite.target_new", "Rome"),
        ("counterfact", "requested_rewrite.target_new.str", "paris "),
        ("counterfact", "requested_rewrite.relation_id", 276),
        ("counterfact", "paraphrase_prompts", "text"),
        ("counterfact", "neighborhood_prompts", None),
        ("known_1000", "prompt", "The tower is in"),
        ("known_1000", "prompt", "Big Ben {} is in"),
        ("known_1000", "attribute", None),
        ("zsre", "src", "Where was he born?"),
        ("zsre", "answers", []),
        ("zsre", "answers", "Salzburg"),
        ("zsre", "alt", ""),
    ],
)
def test_a_wrong_field_is_named_with_its_record(form: FormName, field: str, value: Any) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_records([changed(ENTRIES[form], field, value)], form)
    assert caught.value.facts["field"] == field
    assert "0 of the file" in str(caught.value)


def test_the_wrong_text_in_a_list_is_named_by_its_place() -> None:
    with pytest.raises(SuiteError, match=r"'neighborhood_prompts\[1\]'"):
        parse_records([changed(COUNTERFACT, "neighborhood_prompts", ["fine", 3])], "counterfact")
    with pytest.raises(SuiteError, match=r"'answers\[1\]'"):
        parse_records([changed(ZSRE, "answers", ["fine", ""])], "zsre")


@pytest.mark.parametrize("entry", [None, 7, "text", ["list"]])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_object_is_no_record(form: FormName, entry: Any) -> None:
    with pytest.raises(SuiteError, match="an object"):
        parse_records([entry], form)


def test_a_number_that_is_not_finite_is_named_by_its_path(tmp_path: Path) -> None:
    text = json.dumps([{**COUNTERFACT, "extra": {"list": [1.5, 2.5]}}]).replace("2.5", "1e999")
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError, match=r"COUNTERFACT record 7 .*'extra\.list\[1\]'.*finite"):
        read_records(tmp_path / "data.json")


def test_the_second_record_with_an_id_is_refused_and_names_the_first() -> None:
    with pytest.raises(SuiteError, match=r"record 0 of the file has it") as caught:
        parse_records([COUNTERFACT, {**COUNTERFACT, "case_id": 8}, COUNTERFACT], "counterfact")
    assert (caught.value.facts["position"], caught.value.facts["record_id"]) == (2, 7)


def test_collecting_returns_the_good_records_and_every_problem(tmp_path: Path) -> None:
    entries = [
        COUNTERFACT,
        changed(COUNTERFACT, "case_id", 8) | {"paraphrase_prompts": 1},
        "no record",
        COUNTERFACT,
        {**COUNTERFACT, "case_id": 9},
        changed(COUNTERFACT, "requested_rewrite.target_new.str", "Paris") | {"case_id": 10},
    ]
    path = written(tmp_path / "data.json", entries)
    found: RecordSet[Record] = read_records(path, mode="collect")
    assert [record.case_id for record in found.records] == [7, 9]
    assert [(problem.position, problem.record_id, problem.field) for problem in found.problems] == [
        (1, 8, "paraphrase_prompts"),
        (2, None, "(the record)"),
        (3, 7, "case_id"),
        (5, 10, "requested_rewrite.target_new.str"),
    ]
    assert found.total == 6
    assert "impossible edit" in str(found.problems[3])
    with pytest.raises(SuiteError, match="record 8") as caught:
        read_records(path)
    assert str(caught.value) == str(found.problems[0]), "strict raises the first of the same problems"


def test_a_file_without_any_good_record_is_an_error_in_both_modes(tmp_path: Path) -> None:
    path = written(tmp_path / "data.json", [{**COUNTERFACT, "case_id": "x"}] * 2)
    with pytest.raises(SuiteError, match="None of the 2 records") as caught:
        read_records(path, mode="collect")
    assert len(caught.value.facts["problems"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "a number"),
        ('"text"', "text"),
        ("null", "null"),
        ("true", "true or false"),
        ("[]", "an empty list"),
        ("[[1]]", "no data set that rompatch knows"),
        ('{"a": 1}', "no data set that rompatch knows"),
    ],
)
def test_a_file_of_something_else_says_what_it_holds(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    with pytest.raises(SuiteError, match=message):
        read_records(tmp_path / "data.json")


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    for content in (b"", b" \n"):
        (tmp_path / "data.json").write_bytes(content)
        with pytest.raises(SuiteError, match=rf"an empty file \({len(content)} bytes\)"):
            read_json(tmp_path / "data.json")


def test_a_half_downloaded_file_says_at_which_byte_it_ends(tmp_path: Path) -> None:
    """Cut anywhere inside, however the cut falls: in a text, an escape, a number, a literal, between two records."""
    whole = json.dumps([{**COUNTERFACT, "flag": True, "none": None, "subject": "Écully \\u00e9"}]).encode()
    for size in range(1, len(whole)):
        (tmp_path / "data.json").write_bytes(whole[:size])
        with pytest.raises(SuiteError, match="half downloaded") as caught:
            read_json(tmp_path / "data.json")
        assert f"its end at byte {size:,}" in str(caught.value)


def test_damage_in_the_middle_is_found_at_its_byte_not_at_its_character(tmp_path: Path) -> None:
    text = '[{"subject": "Écully", "attribute" "Lyon"}]'
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    byte = text.encode().index(b'"Lyon"')
    with pytest.raises(SuiteError, match=f"at byte {byte} of {len(text.encode())}") as caught:
        read_json(tmp_path / "data.json")
    assert "half" not in str(caught.value)


def test_other_files_are_called_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("<!doctype html><html>", encoding="utf-8")
    with pytest.raises(SuiteError, match="a web page"):
        read_json(path)
    path.write_bytes(b'["\xe9"]')
    with pytest.raises(SuiteError, match="not UTF-8 at byte 2 of 5"):
        read_json(path)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(SuiteError, match="not JSON"):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1], "a byte order mark is no damage"
    with pytest.raises(SuiteError, match="cannot be read"):
        read_json(tmp_path)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows a few words; all others become [UNK]."""
    vocabulary = {"[UNK]": 0, "The": 1, "Louvre": 2, "is": 3, "in": 4, "Paris": 5}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", bos_token="[UNK]")


@pytest.mark.parametrize("form", FORMS)
def test_a_record_that_the_model_can_score_passes(form: FormName) -> None:
    record = parse_records([ENTRIES[form]], form).records[0]
    check_record(record, toy_tokenizer(), CONTEXT)
    check_record(record, toy_tokenizer(), None, document_start=False)


def test_objects_that_tokenise_alike_are_refused() -> None:
    entry = changed(COUNTERFACT, "requested_rewrite.target_true.str", "Oslo")
    check_record(CounterfactRecord.from_json(entry), toy_tokenizer(), CONTEXT)
    with pytest.raises(SuiteError, match="'Rome' and 'Oslo' tokenise alike") as caught:
        check_record(CounterfactRecord.from_json(entry), word_tokenizer(), CONTEXT)  # both [UNK]
    assert caught.value.facts == {"field": "requested_rewrite.prompt", "record_id": 7}


@pytest.mark.parametrize(
    ("form", "path", "value", "field"),
    [
        ("counterfact", "requested_rewrite.subject", "Louvre " * 200, "requested_rewrite.prompt"),
        ("counterfact", "neighborhood_prompts", ["fine", "Louvre " * 200], "neighborhood_prompts[1]"),
        ("counterfact", "generation_prompts", ["Louvre " * 200], "generation_prompts[0]"),
        ("known_1000", "attribute", "London " * 200, "prompt"),
        ("zsre", "rephrase", "Mozart " * 200, "rephrase"),
        ("zsre", "loc", "who " * 200, "loc"),
    ],
)
def test_a_prompt_longer_than_the_context_is_named(form: FormName, path: str, value: Any, field: str) -> None:
    record = parse_records([changed(ENTRIES[form], path, value)], form).records[0]
    with pytest.raises(SuiteError, match=f"at most {CONTEXT} tokens") as caught:
        check_record(record, toy_tokenizer(), CONTEXT)
    assert caught.value.facts["field"] == field
    assert caught.value.found > CONTEXT
    check_record(record, toy_tokenizer(), None)


def test_an_object_of_no_tokens_is_refused() -> None:
    silent = Tokenizer(models.BPE({"T": 0, "h": 1, "e": 2}, []))  # characters that it does not know vanish
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=silent, bos_token="T")
    with pytest.raises(SuiteError, match="'Pisa' tokenises to nothing"):
        entry = changed(COUNTERFACT, "requested_rewrite.target_new.str", "Pisa") | {"case_id": 1}
        check_record(CounterfactRecord.from_json(entry), tokenizer, CONTEXT)


def test_the_published_files_are_read_whole(data_folder: Path) -> None:
    sizes: dict[str, tuple[str, int]] = {
        "counterfact/counterfact-300.json": ("counterfact", 300),
        "counterfact/counterfact-extra-204.json": ("counterfact", 204),
        "known_1000.json": ("known_1000", 1209),
        "zsre_eval_1037.json": ("zsre", 1037),
    }
    for name, (form, size) in sizes.items():
        found = read_records(data_folder / name, mode="collect")
        assert (found.form, len(found.records), found.problems) == (form, size, ())
    assert len(load_counterfact(data_folder / "counterfact/counterfact-300.json")) == 300
