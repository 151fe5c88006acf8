"""JUnit reports: the common schema, text of any kind, and failures exactly where a gate was missed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_patches import tiny_patch

from rompatch.edits import EditRequest
from rompatch.errors import OutputError
from rompatch.store.records import PatchRecord, StackRecord
from rompatch.verify.drift import Drift
from rompatch.verify.evaluation import Evaluation, PromptResult, compare, scores_of
from rompatch.verify.suite import Kind, Prompt
from rompatch.workflows.gates import check_drift, check_loss, check_rewrites, check_scores
from rompatch.workflows.junit import check_writable, junit_report, write_junit
from rompatch.workflows.stack_report import PatchCheck, StackVerified
from rompatch.workflows.verifying import Verified

ALLOWED = {
    "testsuites": {"name", "tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "properties": set[str](),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "skipped": {"message"},
}
"""Elements and their attributes, out of those of the schema that Jenkins publishes."""
CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase"],
    "properties": ["property"],
    "testcase": ["skipped", "failure"],
}


def check_structure(root: ET.Element) -> None:
    """Names, attributes, order and counts, by hand."""
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= ALLOWED[element.tag], element.tag
        tags = [child.tag for child in element]
        order = CHILDREN.get(element.tag, [])
        assert set(tags) <= set(order)
        assert tags == sorted(tags, key=order.index), f"the schema is a sequence: {element.tag}"
    for suite in root:
        cases = suite.findall("testcase")
        assert all(case.get("name") and case.get("classname") and len(case) <= 1 for case in cases)
        assert int(suite.attrib["tests"]) == len(cases)
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
        assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
        assert suite.attrib["errors"] == "0"
    for name in ("tests", "failures", "errors"):
        assert int(root.attrib[name]) == sum(int(suite.attrib[name]) for suite in root)


def result(
    kind: Kind, text: str, new: float, true: float | None, objects: tuple[str, str] = ("Rome", "Paris")
) -> PromptResult:
    prompt = Prompt(kind, text, objects[0], None if true is None else objects[1])
    return PromptResult(prompt, new, False, true, None if true is None else False)


def evaluation(*results: PromptResult, name: str = "suite") -> Evaluation:
    return Evaluation(name, "test", (), True, results, scores_of(results))


def record(subject: str = "Eiffel Tower") -> PatchRecord:
    request = EditRequest(subject, "The {} is in", "Rome", "Paris")
    patch = tiny_patch(subject, request=request)
    return PatchRecord(patch.id, "b" * 64, patch.header, 1, "2026-01-01", None, None, {})


ALONE = evaluation(
    result("rewrite", "The tower is in", -1, -2),
    result("paraphrase", "Go to the tower in", -1, -2),
    result("neighbourhood", "Big Ben is in", -5, -1),
    result("attribute", "The Colosseum is in", -1, None),
)
STACKED = evaluation(
    result("rewrite", "The tower is in", -3, -2),
    result("paraphrase", "Go to the tower in", -1, -2),
    result("neighbourhood", "Big Ben is in", -1, -5),
    result("attribute", "The Colosseum is in", -1, None),
)
DRIFT = Drift(20.0, 22.0, 0.01, 100)


def stack(in_stack: Evaluation, patch: PatchRecord | None = None, alone: Evaluation | None = ALONE) -> StackVerified:
    patch = patch or record()
    changes = () if alone is None else compare(alone, in_stack)
    check = PatchCheck(patch, in_stack, alone, None if alone is None else 7, False, changes)
    gates = (
        check_rewrites(in_stack, patch.id),
        *check_scores(in_stack.scores, {"s": 0.5}, patch.id),
        check_loss(check.loss, 0.5, patch.id),
        check_drift(DRIFT, 0.2),
    )
    scores = in_stack.scores
    return StackVerified(
        StackRecord("main", "b" * 64, 3), 3, (check,), scores, scores, DRIFT, "a text", gates, None, 1.5
    )


def test_a_stack_s_report_has_a_suite_for_each_patch_and_a_case_for_each_prompt_and_gate() -> None:
    root = ET.fromstring(junit_report(stack(ALONE)))  # noqa: S314 - our own text
    check_structure(root)
    patch, drift = root
    assert (patch.get("name"), drift.get("name")) == (record().label, "drift of the whole model")
    names = [case.get("name") for case in patch.findall("testcase")]
    assert names == [
        "The tower is in [Rome / Paris]",
        "Go to the tower in [Rome / Paris]",
        "Big Ben is in [Rome / Paris]",
        "The Colosseum is in [Rome]",
        *("S", "loss of S in the stack"),
    ]
    properties = {one.get("name"): one.get("value") for one in patch.iter("property")}
    assert (properties["in_stack.s"], properties["alone.es"], properties["loss"]) == ("1", "1", "0")
    assert (properties["patch"], properties["alone_run"]) == (record().id, "7")
    assert root.get("failures") == "0"
    (unknown,) = patch.iter("skipped")
    assert unknown.get("message") == "its true object is not known, so it cannot be judged"


def test_what_misses_a_gate_fails_and_what_merely_fails_is_skipped() -> None:
    found = stack(STACKED)
    root = ET.fromstring(junit_report(found))  # noqa: S314
    check_structure(root)
    failures = {
        case.get("name"): case.find("failure") for case in root.iter("testcase") if case.find("failure") is not None
    }
    assert set(failures) == {"The tower is in [Rome / Paris]", "S", "loss of S in the stack"}
    message = failures["The tower is in [Rome / Paris]"].attrib["message"]  # type: ignore[union-attr]
    assert message == "'Rome' trails 'Paris' by 1.000 nats; it passed alone"
    assert len(found.missed_gates) == 3
    (neighbour,) = (case for case in root.iter("testcase") if "neighbourhood" in case.attrib["classname"])
    assert neighbour[0].tag == "skipped"
    assert "'Paris' trails 'Rome' by 4.000 nats; it passed alone" in neighbour[0].attrib["message"]


@pytest.mark.parametrize("in_stack", [ALONE, STACKED])
@pytest.mark.parametrize("gates", [("rewrite",), ("s",), ("s", "drift"), ("loss",), ()])
def test_a_report_fails_exactly_where_a_gate_was_missed(in_stack: Evaluation, gates: tuple[str, ...]) -> None:
    found = stack(in_stack)
    found = dataclasses.replace(found, gates=tuple(one for one in found.gates if one.gate in gates))
    root = ET.fromstring(junit_report(found))  # noqa: S314
    assert (root.get("failures") != "0") == bool(found.missed_gates)


def test_a_patch_s_report_fails_by_its_gates_alone() -> None:
    gates = check_scores(STACKED.scores, {"es": 1.0, "ps": 1.0}, record().id)
    found = Verified(record(), ALONE, STACKED, compare(ALONE, STACKED), (), None, gates)
    root = ET.fromstring(junit_report(found))  # noqa: S314
    check_structure(root)
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == ["ES"]
    properties = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert (properties["before.es"], properties["after.es"]) == ("1", "0")


@settings(deadline=None, max_examples=60)
@given(text=st.text(min_size=1, max_size=20))
def test_any_text_is_carried_or_escaped(text: str) -> None:
    odd = evaluation(result("rewrite", f"<{text}>", -3, -2, objects=(f"new {text}", f"true {text}")), name=text)
    root = ET.fromstring(junit_report(stack(odd, alone=None)))  # noqa: S314
    check_structure(root)
    name = next(root.iter("testcase")).attrib["name"]
    if text.isprintable():
        assert name == f"<{text}> [new {text} / true {text}]"


def test_control_characters_quotes_and_surrogates_are_written_so_that_they_can_be_read() -> None:
    text = "a\x00b\x1b[31m \"q\" 'p' <&> ]]> \r\n\t \ud800 \ufffe é 東 \U0001f5fc"
    odd = evaluation(result("rewrite", text, -3, -2, objects=("Ro\x07me", "Pa\rris")))
    root = ET.fromstring(junit_report(stack(odd, alone=None)))  # noqa: S314
    case = next(root.iter("testcase"))
    shown = "a\\x00b\\x1b[31m \"q\" 'p' <&> ]]> \\r\n\t \\ud800 \\ufffe é 東 \U0001f5fc"
    assert case.get("name") == f"{shown} [Ro\\x07me / Pa\\rris]"
    assert case[0].text == case[0].attrib["message"] == "'Ro\\x07me' trails 'Pa\\rris' by 1.000 nats"


def test_infinite_perplexity_is_written() -> None:
    found = dataclasses.replace(stack(ALONE), drift=Drift(20.0, float("inf"), 3.0, 5))
    found = dataclasses.replace(found, gates=(check_drift(found.drift, 10.0),))
    root = ET.fromstring(junit_report(found))  # noqa: S314
    check_structure(root)
    assert root.get("failures") == "1"
    assert found.to_json()["drift"]["perplexity_after"] is None
    assert found.to_json()["gates"][0]["value"] is None


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.xml"
    write_junit(stack(ALONE), path)
    before = path.read_bytes()
    assert before.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n<testsuites ")

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_junit(stack(STACKED), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_hold_a_report_is_refused_early(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.xml")
    for path in (tmp_path, tmp_path / "nowhere" / "report.xml"):
        with pytest.raises(OutputError, match="cannot be written"):
            check_writable(path)
