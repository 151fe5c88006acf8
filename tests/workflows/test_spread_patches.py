"""Patches that are solved alone as in stacks, and spread over two layers, through every use case."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heard import Heard
from pico import save_pico
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from rompatch.apply.session import PatchedModel
from rompatch.apply.solve import solve_stack
from rompatch.errors import RequestError, SiteError, StatisticsError
from rompatch.store.records import PatchRecord
from rompatch.workflows.creating import CreateOptions
from rompatch.workflows.existing import UNSAID
from rompatch.workflows.likeness import options_like
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.statistics import build_sampled_at, statistics_cache
from rompatch.workflows.store import Store, open_store

SPREAD: dict[str, Any] = {
    "statistics": "none",
    "layer": 1,
    "hparams": {"steps": 3, "keys": "both", "spread": 2},
    "true": "Paris",
}
WEIGHTS = ["model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"]


def made(store: Store, spec: BaseSpec, subject: str = "Eiffel Tower", **options: Any) -> PatchRecord:
    record = store.create(subject, "The {} is located in", "Rome", spec=spec, **{**SPREAD, **options}).record
    assert record is not None
    return record


def test_a_spread_patch_goes_through_a_store(store: Store, spec: BaseSpec) -> None:
    record = made(store, spec)
    assert [site.parameter for site in record.header.sites] == WEIGHTS
    assert record.header.format_version == 3
    again = store.create("Eiffel Tower", "The {} is located in", "Rome", spec=spec, **SPREAD)
    assert (again.is_new, again.record) == (False, record)
    assert made(store, spec, hparams={"steps": 3, "keys": "both"}).header.sites[0].layer == 1, "another patch"
    store.apply(record.id)
    other = made(store, spec, "Big Ben")
    planned = store.plan(other.id)
    assert {site.parameter for site in planned.sites} == set(WEIGHTS)
    assert all(site.forecast.relative_norm for site in planned.sites), "||W|| is known at both"
    store.set_gates(max_delta_norm=100.0)
    store.apply(other.id)
    assert store.verify(other.id).after.scores.es is not None
    found = store.blame("The Big Ben is located in")
    assert {one.patch.id for one in found.shares} == {record.id, other.id}


def test_baked_and_audited_it_is_inside_at_both_weights(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    ids = [made(store, spec).id, made(store, spec, "Big Ben").id]
    for patch_id in ids:
        store.apply(patch_id)
    store.bake(tmp_path / "baked")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").state_dict()
    with PatchedModel(store.base(spec)) as patched:
        patched.activate([store.blobs.get(patch_id) for patch_id in ids])
        for name in WEIGHTS:
            assert weights[name].equal(patched.model.state_dict()[name])
    audited = store.audit(tmp_path / "baked")
    assert {one.id: one.status for one in audited.patches} == dict.fromkeys(ids, "inside")
    assert not audited.unexplained


def test_a_bundle_carries_it(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record = made(store, spec)
    store.apply(record.id)
    store.export_bundle(tmp_path / "b")
    with open_store(tmp_path / "second" / ".rompatch") as second:
        second.import_bundle(tmp_path / "b")
        assert second.active()[0].header == record.header
        assert second.blobs.get(record.id) == store.blobs.get(record.id)


def test_an_exported_adapter_has_both_updates(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    record = made(store, spec)
    store.apply(record.id)
    exported = store.export_peft(tmp_path / "adapter")
    assert {site.parameter for site in exported.report.sites} == set(WEIGHTS)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for name, update in solve_stack([store.blobs.get(record.id)]).items():
        module = name.removesuffix(".weight")
        factors = {part: tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB"}
        rank = len(factors["A"])
        scale = config["alpha_pattern"].get(module, config["lora_alpha"]) / rank
        found = scale * factors["B"] @ factors["A"]
        np.testing.assert_allclose(found, update.dense(), atol=1e-4 * np.abs(update.dense()).max())


def test_like_it_on_another_base_is_spread_there(store: Store, spec: BaseSpec, tmp_path: Path, heard: Heard) -> None:
    record = made(store, spec)
    store.apply(record.id)
    done = store.rebase(str(save_pico(tmp_path / "next", "gpt2")), layer=2, scores=False)
    (new,) = (one.new for one in done.patches if one.new is not None)
    assert [site.layer for site in new.header.sites] == [2, 1]
    assert new.header.hparams["spread"] == 2


def test_more_layers_than_there_are_below_are_refused(store: Store, spec: BaseSpec) -> None:
    with pytest.raises(RequestError, match="spread over 3 layers that end at layer 1") as caught:
        made(store, spec, hparams={"keys": "both", "spread": 3})
    assert "at most 2" in str(caught.value)
    with pytest.raises(SiteError):
        made(store, spec, layer=9)
    assert store.patches() == ()


def test_a_preset_file_s_keys_count_for_a_flag(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    preset = tmp_path / "large.json"
    preset.write_text(json.dumps({"layer": 1, "hparams": {"keys": "both", "gain": 1.2, "steps": 3}}))
    given: dict[str, Any] = {"layer": None, "preset": preset}
    record = made(store, spec, **given, hparams={"spread": 2})
    assert [site.layer for site in record.header.sites] == [1, 0]
    facts = [{"subject": "Big Ben", "relation": "The {} is located in", "object": "Rome", "true": "Paris"}]
    done = store.create_many(facts, spec=spec, statistics="none", preset=preset, hparams={"spread": 2})
    assert done.count("made") == 1
    assert done.to_json()["setting"]["layers"] == [1, 0]


@pytest.mark.parametrize(
    ("hparams", "reason"),
    [
        ({"spred": 3}, "no such hyper-parameter: 'spred'"),
        ({"keys": "both", "spread": "3"}, "a whole number of at least 1"),
        ({"keys": "mixed", "spread": 3}, "needs the key mode 'both'"),
        ({"gain": -1}, "must be positive"),
    ],
)
def test_a_broken_preset_file_is_named_before_a_model_is_loaded(
    store: Store, tmp_path: Path, hparams: dict[str, Any], reason: str
) -> None:
    preset = tmp_path / "broken.json"
    preset.write_text(json.dumps({"hparams": hparams}))
    with pytest.raises(RequestError, match=r"broken\.json") as caught:
        store.create("Mozart", "{} is", "Rome", spec=BaseSpec("no such model"), preset=preset)
    assert reason in str(caught.value)
    assert "docs/presets.md" in str(caught.value)


def test_like_a_patch_without_a_setting_means_what_it_meant(store: Store, spec: BaseSpec) -> None:
    """A patch of a release without gain, spread and norm penalty, made again under a preset that has them."""
    old = store.blobs.get(made(store, spec, hparams={"steps": 3}).id)
    silent = {name: value for name, value in old.header.hparams.items() if name not in UNSAID}
    header = replace(old.header, hparams=silent)
    given = options_like(header, CreateOptions(), same_base=True)
    assert given.hparams == {**UNSAID, **{name: one for name, one in silent.items() if name != "precision"}}


def test_statistics_of_an_id_are_of_one_text_at_every_site(
    store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setattr("rompatch.compute.statistics._SAMPLE_TOKENS", 8)
    base = store.base(spec)
    (top,) = build_sampled_at(base, [base.site(1)], 40, 0, heard)
    with pytest.raises(StatisticsError, match="no key statistics of the same text and number of tokens") as caught:
        made(store, spec, statistics=top.id)
    assert "40 tokens of self-sampled" in str(caught.value)
    (lower,) = build_sampled_at(base, [base.site(0)], 40, 0, heard)
    header = made(store, spec, statistics=top.id).header
    assert header.statistics is not None
    assert (header.statistics.id, header.more_statistics[0].id) == (top.id, lower.id)


def test_where_a_site_has_none_they_are_sampled_at_once(
    store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setattr("rompatch.workflows.statistics.SAMPLED_TOKENS", 40)
    monkeypatch.setattr("rompatch.compute.statistics._SAMPLE_TOKENS", 8)
    header = made(store, spec, statistics="auto").header
    assert header.statistics is not None
    assert [one.tokens for one in (header.statistics, *header.more_statistics)] == [40, 40]
    assert len({one.id for one in (header.statistics, *header.more_statistics)}) == 2
    assert {file.key.parameter for file in statistics_cache().files() if not file.shipped} == set(WEIGHTS)


def test_alone_it_gives_both_keys_what_they_shall_get(store: Store, spec: BaseSpec) -> None:
    patch = store.blobs.get(made(store, spec).id)
    for factors, update in zip(patch.factors, (solve_stack([patch])[name] for name in WEIGHTS), strict=True):
        keys = factors.key.astype(np.float64)  # type: ignore[union-attr]
        residuals = factors.value - factors.base_out  # type: ignore[union-attr]
        scale = np.abs(residuals).max()
        np.testing.assert_allclose(keys @ update.dense().T, residuals, atol=1e-4 * scale)
