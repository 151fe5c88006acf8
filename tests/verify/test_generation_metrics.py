"""Fluency, consistency and the files of texts they are measured against."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rompatch.errors import SuiteError
from rompatch.verify.consistency import TfIdf
from rompatch.verify.fluency import fluency, generation_entropy, ngram_entropy, words
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.texts import load_texts


def naive_entropy(tokens: list[str], n: int) -> float:
    """The definition, letter by letter: count, divide, sum."""
    grams = [tuple(tokens[i + j] for j in range(n)) for i in range(len(tokens) - n + 1)]
    total = 0.0
    for gram in set(grams):
        share = sum(one == gram for one in grams) / len(grams)
        total -= share * math.log(share) / math.log(2)
    return total


def test_fluency_worked_by_hand() -> None:
    # "a b a b c": bigrams ab, ba, ab, bc: shares 1/2, 1/4, 1/4: H = 1/2 + 2 * (1/4 * 2) = 1.5 bits.
    # Trigrams aba, bab, abc: three of 1/3: H = log2 3 = 1.58496. GE = 1.5 / 3 + 2 * 1.58496 / 3 = 1.55664.
    assert generation_entropy("a b a b c") == pytest.approx(1.5 / 3 + 2 * math.log2(3) / 3)
    assert generation_entropy("a b a b c") == pytest.approx(1.55664, abs=1e-5)


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_entropies_are_those_of_a_naive_count(tokens: list[str]) -> None:
    for n in (2, 3):
        assert ngram_entropy(tokens, n) == pytest.approx(naive_entropy(tokens, n), abs=1e-9)
    expected = naive_entropy(tokens, 2) / 3 + 2 * naive_entropy(tokens, 3) / 3
    assert generation_entropy(" ".join(tokens)) == pytest.approx(expected, abs=1e-9)


def test_the_weights_are_those_of_the_authors_code() -> None:
    """They average the entropies of 2- and 3-grams after weights 2/3 and 4/3."""
    tokens = words("to be or not to be, that is to be or not")
    authors = (2 / 3 * naive_entropy(tokens, 2) + 4 / 3 * naive_entropy(tokens, 3)) / 2
    assert generation_entropy(" ".join(tokens)) == pytest.approx(authors)


def test_a_text_that_repeats_itself_is_less_fluent() -> None:
    varied = "Rome is the capital of Italy and lies on the Tiber, where trade began early."
    assert generation_entropy("Rome Rome Rome Rome Rome Rome Rome Rome") == 0.0
    assert generation_entropy("Rome is Rome is Rome is Rome is") < generation_entropy(varied)


def test_words_are_runs_of_letters_and_single_marks() -> None:
    assert words("Don't stop: l’été, 3.5 東京!") == ["Don't", "stop", ":", "l’été", ",", "3", ".", "5", "東京", "!"]


def test_short_texts_have_entropy_zero_and_no_texts_none() -> None:
    assert [generation_entropy(text) for text in ("", "Rome", "Rome is")] == [0.0, 0.0, 0.0]
    assert fluency([]) is None
    assert fluency(["a b a b c", ""]) == pytest.approx(1.55664 / 2, abs=1e-5)


DOCUMENTS = ("rome tiber", "rome italy", "paris seine")


def hand_cosine(left: str, right: str, documents: tuple[str, ...]) -> float:
    """scikit-learn's documented formula: tf * (ln((1 + n) / (1 + df)) + 1), rows scaled to unit length."""
    vocabulary = sorted({word for document in documents for word in document.split()})
    df = {word: sum(word in document.split() for document in documents) for word in vocabulary}
    idf = {word: math.log((1 + len(documents)) / (1 + df[word])) + 1 for word in vocabulary}
    rows = [[text.lower().split().count(word) * idf[word] for word in vocabulary] for text in (left, right)]
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    return sum(a * b for a, b in zip(*rows, strict=True)) / (norms[0] * norms[1])


def test_consistency_worked_by_hand() -> None:
    # n = 3; df(rome) = 2, the others 1: idf(rome) = ln(4/3) + 1 = 1.287682, idf(tiber) = ln(4/2) + 1 = 1.693147.
    # "rome rome" -> (1, 0); "rome tiber" -> (1.287682, 1.693147) / 2.127207. Cosine 1.287682 / 2.127207 = 0.605339.
    vectors = TfIdf(DOCUMENTS)
    assert vectors.consistency(["Rome", "rome"], ["rome tiber"]) == pytest.approx(0.605339, abs=1e-5)
    assert vectors.consistency(["Rome", "rome"], ["rome tiber"]) == pytest.approx(
        hand_cosine("rome rome", "rome tiber", DOCUMENTS)
    )


@pytest.mark.parametrize(("left", "right"), [("rome italy seine", "paris rome rome"), ("tiber", "italy tiber tiber")])
def test_consistency_is_the_documented_formula(left: str, right: str) -> None:
    assert TfIdf(DOCUMENTS).cosine(left, right) == pytest.approx(hand_cosine(left, right, DOCUMENTS))


def test_equal_texts_have_cosine_one_and_strangers_zero() -> None:
    vectors = TfIdf(DOCUMENTS)
    assert vectors.cosine("rome tiber", "tiber rome") == pytest.approx(1.0)
    assert vectors.cosine("rome", "seine") == 0.0
    assert vectors.cosine("oslo", "rome") == 0.0, "no word of the vocabulary: nothing in common, not NaN"


def test_consistency_without_texts_is_not_measured() -> None:
    vectors = TfIdf(DOCUMENTS)
    assert vectors.consistency(["rome"], []) is None
    assert vectors.consistency([], ["rome"]) is None
    with pytest.raises(SuiteError, match="no words"):
        TfIdf(["", "!"])


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(SuiteError, match=r"pip install rompatch\[bench\]"):
        TfIdf(DOCUMENTS)


def record(case_id: int = 7, subject: str = "Louvre", target_id: str | None = "Q220") -> CounterfactRecord:
    new = {"str": "Rome"} | ({"id": target_id} if target_id else {})
    rewrite = {"prompt": "{} is in", "subject": subject, "relation_id": "P276", "target_new": new}
    return CounterfactRecord.from_json(
        {"case_id": case_id, "requested_rewrite": {**rewrite, "target_true": {"str": "Paris", "id": "Q90"}}}
    )


SNIPPETS = [
    {"relation_id": "P276", "target_id": "Q220", "samples": [{"name": "Colosseum", "text": "An arena in Rome."}]},
    {"relation_id": "P276", "target_id": "Q90", "samples": [{"name": "Louvre", "text": "A museum in Paris."}]},
    {"relation_id": "P31", "target_id": "Q1", "samples": [{"name": "Louvre", "text": "A palace."}]},
    {"relation_id": "P276", "target_id": "Q220", "samples": [{"name": "Pantheon", "text": "A temple in Rome."}]},
]


def test_the_authors_snippets_give_references_by_object_and_texts_by_subject(tmp_path: Path) -> None:
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(SNIPPETS), encoding="utf-8")
    texts = load_texts(path)
    assert texts.references(record()) == ("An arena in Rome.", "A temple in Rome.")
    assert texts.about_subject(record()) == ("A museum in Paris.", "A palace.")
    assert texts.references(record(target_id=None)) == ()
    assert texts.references(record(target_id="Q5")) == ()
    assert texts.about_subject(record(subject="Big Ben")) == ()
    assert sorted(texts.documents()) == ["A museum in Paris.", "A palace.", "A temple in Rome.", "An arena in Rome."]


def test_a_plain_file_gives_texts_by_case_id(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"7": ["One.", "Two."], "8": []}), encoding="utf-8")
    texts = load_texts(path)
    assert texts.references(record()) == texts.about_subject(record()) == ("One.", "Two.")
    assert texts.references(record(8)) == ()
    assert texts.references(record(9)) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "holds no texts"),
        ([], "holds no texts"),
        ({}, "holds no texts"),
        ({"7": []}, "holds no texts"),
        ({"seven": ["text"]}, "the key 'seven'"),
        ({"7": "text"}, "texts record 7 .* wrong field '7'"),
        ({"7": ["fine", 3]}, r"'7\[1\]'"),
        ([{"target_id": "Q1", "samples": []}], "no field 'relation_id'"),
        ([{"relation_id": "P1", "target_id": "Q1"}], "'samples'"),
        ([{"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x"}]}], r"'samples\[0\]\.text'"),
        ([7], "an object"),
    ],
)
def test_files_without_texts_are_refused_by_entry_and_field(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SuiteError, match=message):
        load_texts(path)
