"""Edit requests: what is refused, and that nothing is lost on the way to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rompatch.edits import EditRequest, fill, same_text
from rompatch.errors import RequestError, SubjectError, TargetError

WHOLE = {
    "subject": "Eiffel Tower",
    "template": "The {} is located in",
    "target_new": "Rome",
    "target_true": "Paris",
    "relation": "located in",
}


def request(**changes: Any) -> EditRequest:
    return EditRequest(**{**WHOLE, **changes})


def test_the_prompt_is_the_template_with_the_subject_in_its_place() -> None:
    assert request().prompt == "The Eiffel Tower is located in"


@pytest.mark.parametrize(
    ("template", "filled"),
    [("{} is", "{x} is"), ("{0} and {} and {a}", "{0} and {x} and {a}"), ("100 % {}", "100 % {x}")],
)
def test_filling_leaves_every_other_brace_alone(template: str, filled: str) -> None:
    assert fill(template, "{x}") == filled


def test_a_subject_with_braces_is_filled_in_once() -> None:
    assert request(subject="a {} b", template="{} is").prompt == "a {} b is"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"subject": ""}, SubjectError, "subject is empty"),
        ({"subject": " \n"}, SubjectError, "subject is empty"),
        ({"target_new": "  "}, TargetError, "new object is empty"),
        ({"target_true": ""}, TargetError, "true object is empty"),
        ({"target_new": " paris "}, TargetError, "are the same"),
        ({"template": "The tower is in"}, RequestError, "0 of them"),
        ({"template": "{} is near {}"}, RequestError, "2 of them"),
        ({"template": ""}, RequestError, "0 of them"),
        ({"subject": None}, RequestError, "must be text"),
        ({"target_new": 7}, RequestError, "must be text"),
        ({"template": b"{}"}, RequestError, "must be text"),
        ({"relation": ["located in"]}, RequestError, "must be text"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused(
    changes: dict[str, Any], error: type[RequestError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        request(**changes)
    assert caught.value.exit_code == 2


def test_true_object_and_relation_may_be_missing() -> None:
    bare = request(target_true=None, relation=None)
    assert bare.to_json() == {**WHOLE, "target_true": None, "relation": None}


TEXT = st.text(min_size=1, max_size=10).filter(str.strip)


@given(subject=TEXT, new=TEXT, true=st.none() | TEXT, relation=st.none() | st.text(max_size=5))
def test_json_and_back_gives_the_same_request(subject: str, new: str, true: str | None, relation: str | None) -> None:
    if true is not None and same_text(new, true):
        return
    made = EditRequest(subject, "The {} is", new, true, relation)
    assert EditRequest.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("field", ["subject", "template", "target_new"])
def test_a_missing_field_is_named(field: str) -> None:
    data = {key: value for key, value in WHOLE.items() if key != field}
    with pytest.raises(RequestError, match=field):
        EditRequest.from_json(data)


def test_optional_fields_may_be_absent_from_json() -> None:
    data = {key: WHOLE[key] for key in ("subject", "template", "target_new")}
    assert EditRequest.from_json(data) == request(target_true=None, relation=None)


@given(text=st.text(max_size=12))
def test_texts_are_the_same_but_for_case_and_white_space(text: str) -> None:
    assert same_text(text, f"  {text}\n")
    assert same_text(text.upper().lower(), text.lower().upper().lower())
    assert not same_text(text, text + "x")
