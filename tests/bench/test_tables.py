"""Tables, comparisons and failures, from results written by hand: golden text, and numbers that can be checked."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
from click import unstyle

from rompatch.bench import markup
from rompatch.bench.failures import worst
from rompatch.bench.tables import compare, same_records, table
from rompatch.bench.tasks import Shard, selected
from rompatch.cli.commands.bench_views import table_text
from rompatch.errors import RequestError
from rompatch.store.bench import BenchResultRecord, BenchRunRecord

SETTINGS = {"benchmark": "counterfact", "base": "b", "dataset": "d", "document_start": True}


def a_run(name: str | None = "rome", **changed: Any) -> BenchRunRecord:
    settings = {**SETTINGS, **changed}
    return BenchRunRecord("0123456789ab" + "0" * 52, name, "b", "counterfact", "rome", "t", settings, {"base": "pico"})


def scored(
    place: int, after: dict[str, float | None], before: dict[str, float | None] | None = None, **more: Any
) -> Any:
    low = {"es": 0.0, "em": -0.1, "ps": 0.5, "pm": 0.0, "ns": 0.8, "nm": 0.05}
    measures = {"before": low if before is None else before, "after": after}
    return BenchResultRecord(place, place, "scored", request={"subject": f"s{place}"}, measures=measures, **more)


def failed(place: int, text: str = "No subject.") -> BenchResultRecord:
    return BenchResultRecord(place, place, "failed", error_kind="SubjectError", error=text, request={})


FIRST = [
    scored(0, {"es": 1.0, "em": 0.9, "ps": 1.0, "pm": 0.6, "ns": 0.7, "nm": 0.02}),
    scored(1, {"es": 1.0, "em": 0.7, "ps": 0.5, "pm": 0.2, "ns": 0.9, "nm": 0.04}),
    failed(2),
]
GOLDEN = """\
Editor        Score S           ES           EM           PS           PM           NS         NM  GE  RS  n  failed
unedited          0.0    0.0 (0.0)  -10.0 (0.0)   50.0 (0.0)    0.0 (0.0)   80.0 (0.0)  5.0 (0.0)   -   -  2       -
rome      83.7 (13.2)  100.0 (0.0)  80.0 (19.6)  75.0 (49.0)  40.0 (39.2)  80.0 (19.6)  3.0 (2.0)   -   -  2       1"""
GOLDEN_MARKDOWN = """\
| Editor | Score S | ES | EM | PS | PM | NS | NM | GE | RS | n | failed |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| unedited | 0.0 | 0.0 (0.0) | -10.0 (0.0) | 50.0 (0.0) | 0.0 (0.0) | 80.0 (0.0) | 5.0 (0.0) | - | - | 2 | - |
| a\\| | 83.7 (13.2) | 100.0 (0.0) | 80.0 (19.6) | 75.0 (49.0) | 40.0 (39.2) | 80.0 (19.6) | 3.0 (2.0) | - | - | 2 | 1 |
"""


def test_the_table_is_the_paper_s_with_what_was_not_measured_as_a_dash() -> None:
    assert unstyle(table_text(table([(a_run(), FIRST)]), exact=False)) == GOLDEN
    assert table_text(table([(a_run("a|"), FIRST)]), exact=False, form="markdown") + "\n" == GOLDEN_MARKDOWN


def test_the_half_width_of_s_is_that_of_the_delta_method() -> None:
    s = table([(a_run(), FIRST)])[1].estimates["s"]
    assert s is not None
    h = 3 / (1 / 1.0 + 1 / 0.75 + 1 / 0.8)
    moves = [h**2 / 3 * ((x - 0.75) / 0.75**2 + (y - 0.8) / 0.8**2) / 2 for x, y in ((1.0, 0.7), (0.5, 0.9))]
    assert s.value == pytest.approx(h)
    assert s.half_width == pytest.approx(1.96 * math.sqrt(sum(move**2 for move in moves) * 2))


def test_csv_keeps_the_digits_and_leaves_empty_what_was_not_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(markup.as_csv(table([(a_run(), FIRST)]), False))))
    assert [row["Editor"] for row in rows] == ["unedited", "rome"]
    assert (rows[1]["PS"], rows[1]["PS +-"], rows[1]["PS n"]) == ("75.0000", "49.0000", "2")
    assert (rows[1]["GE"], rows[1]["GE n"], rows[0]["failed"], rows[1]["failed"]) == ("", "", "", "1")


def test_exact_success_has_columns_of_its_own() -> None:
    after = {"rewrite_accuracy": 1.0, "rephrase_accuracy": 0.5, "locality": 0.75}
    lines = table([(a_run(), [scored(0, after, {"rewrite_accuracy": 0.0})])])
    assert unstyle(table_text(lines, exact=True)).splitlines() == [
        "Editor    rewrite acc  rephrase acc  locality  rewrite exact  rephrase exact  locality exact  n  failed",
        "unedited          0.0             -         -              -               -               -  1       -",
        "rome            100.0          50.0      75.0              -               -               -  1       0",
    ]


def test_runs_on_one_base_share_the_unedited_line_and_others_have_theirs() -> None:
    lines = table([(a_run("a"), FIRST), (a_run("b"), FIRST[:1]), (a_run("c", base="other"), FIRST)])
    assert [line.label for line in lines] == ["pico, unedited", "a", "b", "pico, unedited", "c"]
    assert [line.scored for line in lines] == [2, 2, 1, 2, 2]
    assert not same_records([(a_run("a"), FIRST), (a_run("b"), FIRST[:1])])
    assert same_records([(a_run("a"), FIRST), (a_run("b"), [*FIRST[:2], failed(7)])])


def test_no_record_scored_is_all_dashes_and_no_runs_no_lines() -> None:
    text = table_text(table([(a_run(), [failed(0)])]), exact=False)
    assert "0.0" not in text
    assert text.splitlines()[2].split() == ["rome", *["-"] * 9, "0", "1"]
    assert table([]) == ()


def test_differences_are_paired_over_the_records_that_both_scored() -> None:
    second = [
        scored(1, {"es": 1.0, "ps": 1.0, "ns": 0.8, "ge": 6.0}),
        scored(0, {"es": 0.0, "ps": 1.0, "ns": 0.6, "ge": 5.0}),
        scored(2, {"es": 0.0, "ps": 0.0, "ns": 0.0}),
        scored(3, {"es": 0.0, "ps": 0.0, "ns": 0.0}),
    ]
    changes = {change.name: change for change in compare(FIRST, second)}
    ns = changes["ns"].difference
    assert ns is not None
    assert (ns.value, ns.half_width, ns.n) == (pytest.approx(-0.1), pytest.approx(0.0, abs=1e-12), 2)
    assert changes["ns"].is_clear
    ps = changes["ps"].difference
    assert ps is not None
    assert (ps.value, ps.n, changes["ps"].is_clear) == (0.25, 2, False)
    assert changes["ge"].difference is None
    assert changes["ge"].second is not None


def test_records_are_the_same_by_what_they_ask_not_by_their_place() -> None:
    moved = BenchResultRecord(9, 0, "scored", request={"subject": "s0"}, measures=FIRST[0].measures)
    other = BenchResultRecord(0, 0, "scored", request={"subject": "another"}, measures=FIRST[0].measures)
    assert compare(FIRST, [moved])[1].difference is not None
    assert compare(FIRST, [other])[1].difference is None


def asked(kind: str, before: float | None, after: float | None, exact: bool = False) -> dict[str, Any]:
    def phase(margin: float | None) -> dict[str, Any]:
        return {"margin": margin, "passed": None if margin is None else margin > 0, "new_exact": exact}

    true = None if after is None else "Paris"
    prompt = {"kind": kind, "text": f"{kind}?", "target_new": "Rome", "target_true": true}
    return {**prompt, "before": phase(before), "after": phase(after)}


def with_prompts(place: int, *prompts: dict[str, Any]) -> BenchResultRecord:
    return scored(place, {}, prompts={"prompts": prompts})


def test_the_worst_records_come_first_and_old_failures_of_neighbours_do_not_count() -> None:
    results = [
        with_prompts(0, asked("rewrite", -1, 2), asked("neighbourhood", -1, -3), asked("attribute", 1, -1)),
        with_prompts(1, asked("rewrite", -1, 2), asked("neighbourhood", 1, -3), asked("neighbourhood", 1, 2)),
        with_prompts(2, asked("rewrite", -1, -2), asked("paraphrase", -1, -0.5), asked("paraphrase", -1, -0.7)),
        failed(3),
        with_prompts(4, asked("rewrite", None, None)),
    ]
    found = worst(results)
    assert [record.position for record in found] == [3, 2, 4, 1]
    assert found[0].error == "No subject."
    assert [record.severity for record in found] == [None, 2.0, 1.0, 0.5]
    assert [(prompt.kind, prompt.margin) for prompt in found[1].prompts] == [
        ("rewrite", -2),
        ("paraphrase", -0.7),
        ("paraphrase", -0.5),
    ]
    (broken,) = found[3].prompts
    assert (broken.wanted, broken.other, broken.margin, broken.margin_before) == ("Paris", "Rome", -3, 1)


@pytest.mark.parametrize(("limit", "count"), [(None, 1), (7, 2), (100, 3), (1, 4)])
def test_shards_cover_the_first_records_once(limit: int | None, count: int) -> None:
    parts: Sequence[range] = [selected(10, limit, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted(place for part in parts for place in part) == list(range(min(limit or 10, 10)))


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/٢"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Shard.parse(text)
