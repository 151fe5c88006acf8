"""GE, RS and essence: measured where they were asked for and can be, "not measured" elsewhere, the base unharmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_records import QUICK, counterfact, write

from rompatch.verify.consistency import TfIdf
from rompatch.verify.fluency import fluency
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store

REFERENCES = {"0": ["Rome is a city of fountains and ruins."], "1": ["London is a city with a river and towers."]}


def run(store: Store, spec: BaseSpec, file: Path, **more: Any) -> tuple[Any, ...]:
    done = store.bench("counterfact", file, **QUICK, spec=spec, **more)
    return store.bench_results(done.run.id, prompts=True)


def test_texts_are_measured_as_the_metrics_themselves_would(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    file = write(tmp_path / "records.json", [counterfact(0), counterfact(2, generation_prompts=[])])
    references = write(tmp_path / "references.json", REFERENCES)
    first, second = run(store, spec, file, generation=True, references=references, essence=references)
    for phase in ("before", "after"):
        texts = first.prompts["texts"][phase]
        assert [text.startswith("Eiffel Tower is") for text in texts] == [True, True]
        assert texts[0] != texts[1]  # sampled, although the prompts are the same
        assert first.measures[phase]["ge"] == fluency(texts)
        expected = TfIdf([text for some in REFERENCES.values() for text in some]).consistency(texts, REFERENCES["0"])
        assert first.measures[phase]["rs"] == pytest.approx(expected)
        assert first.measures[phase]["essence"] > 1
        assert [second.measures[phase][name] for name in ("ge", "rs", "essence")] == [None, None, None]
    assert first.prompts["texts"]["before"] != first.prompts["texts"]["after"]
    assert first.measures["before"]["essence"] != first.measures["after"]["essence"]
    (line,) = [line for line in store.bench_table() if line.run is not None]
    assert (line.estimates["ge"].n, line.estimates["es"].n) == (1, 2)  # type: ignore[union-attr]


def test_texts_are_part_of_what_a_run_is(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    file = write(tmp_path / "records.json", [counterfact(0)])
    references = write(tmp_path / "references.json", REFERENCES)
    other = write(tmp_path / "other.json", {"0": ["Rome."]})
    run(store, spec, file)
    run(store, spec, file, essence=references)
    run(store, spec, file, essence=other)
    assert len(store.bench_runs()) == 3
