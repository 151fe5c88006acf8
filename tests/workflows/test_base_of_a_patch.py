"""Whatever base is chosen for future patches, a patch is used on its own, begins as it did, on the device named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from heard import FAST, Heard
from pico import save_pico

from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

PROMPT = "The Eiffel Tower is located in"


def made(store: Store, spec: BaseSpec, subject: str = "Eiffel Tower", **options: Any) -> PatchRecord:
    record = store.create(subject, "The {} is located in", "Rome", spec=spec, **{**FAST, **options}).record
    assert record is not None
    return record


def suite_file(path: Path) -> Path:
    prompts = [{"kind": "rewrite", "text": PROMPT, "target_new": "Rome", "target_true": "Paris"}]
    path.write_text(json.dumps({"rompatch_suite": 1, "name": "mine", "source": "test", "prompts": prompts}))
    return path


def test_every_use_of_a_patch_loads_its_own_base_after_another_was_chosen(
    store: Store, spec: BaseSpec, tmp_path: Path
) -> None:
    record = made(store, spec, apply=True)
    store.use(str(save_pico(tmp_path / "other", "gpt2", seed=3)))
    for names in (None, [record.id], []):
        with store.session(names) as model:
            assert model.config.model_type == "llama"
    (text,) = store.generate(PROMPT, compare=True, max_new_tokens=2)
    assert (text.edited, text.base) == tuple(
        one
        for found in store.generate(PROMPT, compare=True, max_new_tokens=2, spec=spec)
        for one in (found.edited, found.base)
    )
    verified = store.verify(record.id, suite=suite_file(tmp_path / "suite.json"))
    assert verified.before.results != verified.after.results
    assert store.bake(tmp_path / "edited").report.rewritten[0].parameter == record.header.sites[0].parameter
    assert store.base().model_type == "gpt2", "future patches are made for the other"


def test_a_part_of_the_base_may_be_named_alone(store: Store, spec: BaseSpec) -> None:
    record = made(store, spec)
    store.use("smollm2-135m")
    assert store.spec_for([record], dtype="bfloat16") == BaseSpec(spec.model, "bfloat16")
    (text,) = store.generate(PROMPT, patches=(), model=spec.model, dtype="bfloat16", max_new_tokens=1)
    assert text.prompt == PROMPT


def test_a_base_is_loaded_once_for_each_device(store: Store, spec: BaseSpec) -> None:
    here, elsewhere = store.base(spec), store.base(spec, device="auto")
    assert here is not elsewhere
    assert store.base(spec) is here
    assert store.base(spec, device="auto") is elsewhere


class Meddler(Heard):
    """Applies a patch while another one is being scored."""

    store: Store
    patch_id: str

    def step(self, phase: str, done: int, total: int) -> None:
        if phase == "scoring" and not self.store.ledger.revisions("main")[0].number > 1:
            self.store.apply(self.patch_id)


def test_a_run_names_the_revision_whose_patches_were_scored(spec: BaseSpec, tmp_path: Path) -> None:
    meddler = Meddler()
    with open_store(tmp_path / "mine", reporter=meddler) as store:
        first, late = made(store, spec, apply=True), made(store, spec, "Big Ben", true="London")
        meddler.store, meddler.patch_id = store, late.id
        run = store.verify(first.id, suite=suite_file(tmp_path / "suite.json"), in_stack=True).run
        stack = store.stack()
    assert stack is not None
    assert stack.revision == 2, "the stack did change meanwhile"
    assert run is not None
    assert (run.revision, run.settings["patches"]) == (1, [first.id])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [((), True), ((False,), False), ((True,), True), ((False, False), False), ((False, True), True)],
)
def test_generated_texts_begin_as_the_patches_own_prompts(
    store: Store, spec: BaseSpec, settings: tuple[bool, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rompatch.verify import generation

    begun: list[bool] = []
    continued = generation.generate

    def listening(*args: Any, document_start: bool, **options: Any) -> list[str]:
        begun.append(document_start)
        return continued(*args, document_start=document_start, **options)

    names = [
        made(store, spec, subject, document_start=setting).id
        for subject, setting in zip(("Eiffel Tower", "Big Ben"), settings, strict=False)
    ]
    monkeypatch.setattr(generation, "generate", listening)
    store.generate(PROMPT, patches=tuple(names), max_new_tokens=1, compare=True, spec=spec)
    assert begun == [expected, expected], "the base's text begins like the edited one's"
    store.generate(PROMPT, patches=tuple(names), max_new_tokens=1, spec=spec, document_start=not expected)
    assert begun[-1] is not expected
