"""Create, apply, revert, verify, generate, bake: on a saved pico model, in a few steps."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import FAST, Heard
from pico import END, save_pico, toy_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rompatch.errors import (
    BaseMismatchError,
    ComputeError,
    ConflictError,
    GateError,
    OutputError,
    RequestError,
    StatisticsError,
    StoreError,
    SubjectError,
    SuiteError,
    TargetError,
)
from rompatch.sites import tensor_sha256
from rompatch.store.records import PatchRecord
from rompatch.workflows import statistics as statistics_workflow
from rompatch.workflows.baking import bake
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

REQUEST = ("Eiffel Tower", "The {} is located in", "Rome")
PROMPT = "The Eiffel Tower is located in"


def hashes(model: torch.nn.Module) -> dict[str, str]:
    return {name: tensor_sha256(tensor) for name, tensor in model.state_dict().items()}


def made(store: Store, spec: BaseSpec, *request: str, **options: Any) -> PatchRecord:
    record = store.create(*(request or REQUEST), spec=spec, **{**FAST, **options}).record
    assert record is not None
    return record


def everything(store: Store) -> tuple[Any, ...]:
    """What a store holds, to compare."""
    files = sorted((str(p), p.stat().st_size) for p in (store.root / "patches").iterdir())
    return store.patches(), store.stack(), store.history(limit=99), store.base_spec(), files


# The store


def test_the_nearest_store_above_is_found(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    open_store(tmp_path / ".rompatch").close()
    with open_store(start=inside, create=False) as found:
        assert found.root == tmp_path / ".rompatch"
    with open_store(tmp_path, create=False) as named:
        assert named.root == tmp_path / ".rompatch", "its parent stands for it"


def test_the_environment_names_a_store_and_an_argument_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMPATCH_STORE", str(tmp_path / "elsewhere"))
    with open_store() as named:
        assert named.root == tmp_path / "elsewhere"
    with open_store(tmp_path / "mine" / ".rompatch") as mine:
        assert mine.root == tmp_path / "mine" / ".rompatch"


def test_a_store_is_made_with_a_note_once_and_only_when_asked(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(StoreError):
        open_store(create=False)
    with pytest.raises(StoreError):
        open_store(tmp_path / ".rompatch", create=False)
    assert list(tmp_path.iterdir()) == []
    open_store(reporter=heard).close()
    assert heard.notes == [f"created the store {tmp_path / '.rompatch'}"]
    open_store(reporter=heard).close()
    assert len(heard.notes) == 1


# create


def test_the_same_request_gives_the_same_id_in_any_store(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record = made(store, spec)
    with open_store(tmp_path / "other") as other:
        assert made(other, spec).id == record.id
        assert made(other, spec, again=True, seed=1).id != record.id
    assert store.patch(record.id).id == record.id
    assert record.request.target_new == "Rome"
    assert record.measurements["probabilities"]["after"]["new"] > 0
    assert store.base_spec() == spec, "the first base is remembered"


def test_a_dry_run_writes_nothing(store: Store, spec: BaseSpec) -> None:
    before = everything(store)
    created = store.create(*REQUEST, spec=spec, dry_run=True, **FAST)
    assert everything(store) == before
    assert created.record is None
    assert created.plan.parameter == "model.layers.1.mlp.down_proj.weight"
    assert created.plan.request.prompt == PROMPT
    json.dumps(created.to_json())


def test_a_second_create_returns_the_patch_that_exists(store: Store, spec: BaseSpec) -> None:
    first = store.create(*REQUEST, spec=spec, **FAST)
    second = store.create("Eiffel Tower", "The {} is  located in", "rome", spec=spec, **FAST)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.record == first.record
    assert len(store.patches()) == 1


def test_another_object_for_the_same_subject_notes_the_first(store: Store, spec: BaseSpec, heard: Heard) -> None:
    first = made(store, spec)
    made(store, spec, "Eiffel Tower", "The {} is located in", "London")
    assert any(first.short_id in note and "another object" in note for note in heard.notes)
    assert len(store.patches()) == 2


def test_create_applies_where_asked_and_applying_again_changes_nothing(store: Store, spec: BaseSpec) -> None:
    created = store.create(*REQUEST, spec=spec, apply=True, **FAST)
    assert created.revision is not None
    assert [record.id for record in store.active()] == [created.record.id]  # type: ignore[union-attr]
    assert store.create(*REQUEST, spec=spec, apply=True, **FAST).revision is None
    json.dumps(created.to_json())


def test_flags_win_over_the_preset(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"layer": 2, "document_start": False, "hparams": {"steps": 9, "lr": 0.25}}))
    options = {"spec": spec, "dry_run": True, "preset": preset, "true": "Paris"}
    plan = store.create(*REQUEST, **options).plan
    assert (plan.layers, plan.document_start, plan.hparams.steps, plan.hparams.lr) == ((2,), False, 9, 0.25)
    plan = store.create(*REQUEST, layer=0, document_start=True, hparams={"steps": 5}, **options).plan
    assert (plan.layers, plan.document_start, plan.hparams.steps, plan.hparams.lr) == ((0,), True, 5, 0.25)


@pytest.mark.parametrize(
    ("request_", "options", "error"),
    [
        (("", "located in", "Rome"), {}, SubjectError),
        (("Eiffel Tower", "located in", " "), {}, TargetError),
        (("Eiffel Tower", "located in", "Paris"), {}, TargetError),
        (("Eiffel Tower", " ", "Rome"), {}, RequestError),
        (("Eiffel Tower", "{} is near {}", "Rome"), {}, RequestError),
        (("Eiffel Tower", "", "Rome"), {"prompt": PROMPT}, RequestError),
        (REQUEST, {"hparams": {"learning_rate": 1}}, RequestError),
        (REQUEST, {"hparams": {"steps": 0}}, RequestError),
        (REQUEST, {"statistics": "abc123"}, StatisticsError),
    ],
)
def test_what_cannot_be_carried_out_is_refused_and_leaves_nothing(
    store: Store, spec: BaseSpec, request_: tuple[str, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    before = everything(store)
    with pytest.raises(error):
        made(store, spec, *request_, **options)
    assert everything(store) == before


def changed_base(saved: Path, target: Path, change: Any) -> BaseSpec:
    shutil.copytree(saved, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return BaseSpec(str(target))


@pytest.mark.parametrize("layer", [0, 2])
def test_nan_in_the_base_is_a_compute_error_and_nothing_is_recorded(
    store: Store, saved_base: Path, tmp_path: Path, layer: int
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"][0, 0] = torch.nan

    spec = changed_base(saved_base, tmp_path / "nan", spoil)
    before = everything(store)
    with pytest.raises(ComputeError):
        made(store, spec)
    assert everything(store) == before


def test_a_full_disk_is_an_output_error_and_leaves_no_row(
    store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(store)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            made(store, spec)
    assert everything(store) == before


# apply, revert, and the session


def test_apply_and_revert_give_the_edited_and_the_base_tensors(store: Store, spec: BaseSpec) -> None:
    record = made(store, spec)
    base = hashes(store.base(spec).model)
    store.apply(record.short_id)
    with store.session() as model:
        edited = hashes(model)
    assert [name for name in base if base[name] != edited[name]] == ["model.layers.1.mlp.down_proj.weight"]
    assert hashes(store.base(spec).model) == base, "the session restores"
    store.revert("Eiffel Tower")
    with store.session() as model:
        assert hashes(model) == base
    with pytest.raises(ConflictError):
        store.revert(record.id)


def test_another_base_than_the_patches_own_is_refused(
    store: Store, spec: BaseSpec, saved_base: Path, tmp_path: Path
) -> None:
    record = made(store, spec, apply=True)

    def alter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1

    altered = changed_base(saved_base, tmp_path / "altered", alter)
    before = hashes(store.base(altered).model)
    with pytest.raises(BaseMismatchError, match=r"layers\.1\.mlp\.down_proj"), store.session(spec=altered):
        pass
    assert hashes(store.base(altered).model) == before
    with pytest.raises(BaseMismatchError):
        store.verify(record.id, spec=altered)
    assert store.ledger.verifications(record.id) == ()


def test_another_tokenizer_is_refused(store: Store, spec: BaseSpec, saved_base: Path, tmp_path: Path) -> None:
    made(store, spec, apply=True)
    other = tmp_path / "other"
    shutil.copytree(saved_base, other)
    tokenizer = type(toy_tokenizer()).from_pretrained(saved_base)
    tokenizer.add_tokens(["Eiffelturm"])
    tokenizer.save_pretrained(other)
    with pytest.raises(BaseMismatchError, match="tokenizer"), store.session(spec=BaseSpec(str(other))):
        pass


# verify


def suite_file(path: Path, subject: str = "Eiffel Tower") -> Path:
    prompts = [
        {"kind": "rewrite", "text": f"The {subject} is located in", "target_new": "Rome", "target_true": "Paris"},
        {"kind": "neighbourhood", "text": "Big Ben is in", "target_new": "Rome", "target_true": "London"},
    ]
    path.write_text(json.dumps({"rompatch_suite": 1, "name": "mine", "source": "test", "prompts": prompts}))
    return path


def test_verify_scores_before_and_after_and_records_the_run(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record = made(store, spec)
    verified = store.verify(record.id, suite=suite_file(tmp_path / "suite.json"))
    assert verified.before.scores.to_json() != verified.after.scores.to_json()
    (run,) = store.ledger.verifications(record.id)
    assert verified.run == run
    assert run.score("es", "pre") == verified.before.scores.es
    assert run.score("es", "post") == verified.after.scores.es
    assert run.settings["patches"] == [record.id]
    json.dumps(verified.to_json())
    unrecorded = store.verify(record.id, suite=suite_file(tmp_path / "suite.json"), record=False)
    assert unrecorded.run is None
    assert unrecorded.after == verified.after, "scoring is reproducible"
    assert len(store.ledger.verifications(record.id)) == 1


def test_gates_pass_or_fail_and_a_score_that_is_missing_fails(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record = made(store, spec)
    suite = suite_file(tmp_path / "suite.json")
    store.verify(record.id, suite=suite, gates={"es": 0.0, "ns": 0.0}).check_gates()
    missed = store.verify(record.id, suite=suite, gates={"ps": 0.0})
    assert missed.missed_gates == ("PS not measured, at least 0.0 wanted",)
    with pytest.raises(GateError, match="PS not measured") as caught:
        missed.check_gates()
    assert caught.value.exit_code == 3
    for gates in ({"xs": 0.5}, {"es": 1.5}, {"es": float("nan")}):
        with pytest.raises(RequestError):
            store.verify(record.id, suite=suite, gates=gates)


def test_a_suite_about_another_subject_is_refused(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record = made(store, spec)
    with pytest.raises(SuiteError, match=r"not about patch .*Eiffel Tower"):
        store.verify(record.id, suite=suite_file(tmp_path / "suite.json", "Big Ben"))


def test_in_the_stack_the_other_patches_count_too(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record, other = made(store, spec), made(store, spec, "Big Ben", "{} is in", "Vienna", true="London", apply=True)
    suite = suite_file(tmp_path / "suite.json")
    alone = store.verify(record.id, suite=suite)
    together = store.verify(record.id, suite=suite, in_stack=True)
    assert alone.before.results == together.before.results
    assert alone.after.results != together.after.results
    assert together.run is not None
    assert together.run.settings["patches"] == sorted([record.id, other.id])
    assert together.run.revision == 1


# generate, bake


def test_generate_compares_the_base_with_the_stack(store: Store, spec: BaseSpec) -> None:
    made(store, spec, apply=True, hparams={"steps": 20})
    (found,) = store.generate(PROMPT, compare=True, max_new_tokens=4, spec=spec)
    ids = toy_tokenizer()(END + PROMPT, return_tensors="pt").input_ids
    options = {"do_sample": False, "max_new_tokens": 4, "attention_mask": torch.ones_like(ids)}
    with store.session() as model:
        edited = model.generate(ids, **options)
    naive = store.base(spec).model.generate(ids, **options)
    decode = toy_tokenizer().decode
    assert found.edited == decode(edited[0, ids.shape[1] :], skip_special_tokens=True)
    assert found.base == decode(naive[0, ids.shape[1] :], skip_special_tokens=True)
    with pytest.raises(RequestError):
        store.generate(" ")


def test_bake_equals_the_session_in_every_tensor(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="empty"):
        store.bake(tmp_path / "edited")
    made(store, spec, apply=True)
    made(store, spec, "Big Ben", "{} is in", "Vienna", true="London", apply=True)
    with store.session() as model:
        expected = hashes(model)
    baked = store.bake(tmp_path / "edited")
    assert hashes(AutoModelForCausalLM.from_pretrained(tmp_path / "edited")) == expected
    assert len(baked.patches) == 2
    json.dumps(baked.to_json())
    card = (tmp_path / "edited" / "README.md").read_text()
    assert all(record.short_id in card for record in store.active())
    with pytest.raises(OutputError):
        store.bake(tmp_path / "edited")


# Key statistics


def test_statistics_are_sampled_once_and_used_again(
    store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setattr(statistics_workflow, "SAMPLED_TOKENS", 40)
    monkeypatch.setattr("rompatch.compute.statistics._SAMPLE_TOKENS", 8)
    first = made(store, spec, statistics="auto")
    cache = statistics_workflow.statistics_cache()
    (file,) = (file for file in cache.files() if not file.shipped)
    assert file.tokens == 40
    assert sum("sampling 40 tokens" in note for note in heard.notes) == 1
    second = made(store, spec, "Big Ben", "{} is in", "Vienna", statistics="auto", seed=5)
    third = made(store, spec, "The Louvre", "{} is in", "Vienna", statistics=file.id[:10])
    assert sum("sampling 40 tokens" in note for note in heard.notes) == 1
    for record in (first, second, third):
        assert record.header.statistics is not None
        assert record.header.statistics.id == file.id
    assert made(store, spec, "Mozart", "{} is in", "Vienna").header.statistics is None
    with pytest.raises(StatisticsError, match="another model or layer"):
        made(store, spec, "Rome", "{} is in", "Vienna", statistics=file.id, layer=0)


def test_statistics_are_built_listed_shown_and_removed(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The Eiffel Tower is in Paris.\n" * 40)
    built = store.build_statistics(str(tmp_path / "text.txt"), layer=1, tokens=60, spec=spec)
    assert built.key.parameter == "model.layers.1.mlp.down_proj.weight"
    assert [file for file in store.statistics() if not file.shipped] == [built]
    assert store.show_statistics(built.id[:8]) == built
    assert store.remove_statistics(built.id[:8]) == built
    assert not built.path.exists()
    assert all(file.shipped for file in store.statistics())
    with pytest.raises(StatisticsError):
        store.show_statistics(built.id)


def test_patches_are_filtered_by_subject_activity_and_number(store: Store, spec: BaseSpec) -> None:
    tower = made(store, spec, apply=True)
    bell = made(store, spec, "Big Ben", "{} is in", "Vienna", true="London", apply=True)
    late = made(store, spec, "Eiffel Tower", "{} is near", "London")
    assert store.patches() == (late, bell, tower)
    assert store.patches("eiffel tower") == (late, tower)
    assert store.patches(active=True) == (bell, tower)
    assert store.patches("Eiffel Tower", active=True) == (tower,)
    assert store.patches(active=True, limit=1) == store.patches(limit=2)[1:] == (bell,)


def test_a_patch_of_another_dtype_than_the_checkpoints_says_so_when_baked(store: Store, tmp_path: Path) -> None:
    folder = save_pico(tmp_path / "half", dtype=torch.bfloat16)
    record = made(store, BaseSpec(str(folder), "float32"), apply=True)
    before = everything(store)
    with pytest.raises(BaseMismatchError, match=r"was computed in float32 \(--dtype\), .* stores bfloat16") as caught:
        store.bake(tmp_path / "edited")
    assert "anew without --dtype" in str(caught.value)
    assert caught.value.patch_id == record.id
    assert not (tmp_path / "edited").exists()
    assert everything(store) == before
    whole = save_pico(tmp_path / "whole", dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(whole)
    bake(store, tmp_path / "edited", spec=BaseSpec(str(whole)))
    assert (tmp_path / "edited" / "model.safetensors").exists()
    assert "| true object | new object |" in (tmp_path / "edited" / "README.md").read_text()
