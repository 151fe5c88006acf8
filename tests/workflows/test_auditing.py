"""audit: of any checkpoint made from a base, the patches inside, those that are missing, and what nobody explains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pico import pico_base, pico_model, save_pico, toy_tokenizer
from random_patches import fact_patch
from transformers import AutoModelForCausalLM

from rompatch.apply.session import PatchedModel
from rompatch.errors import ModelError
from rompatch.patch import Patch
from rompatch.workflows.audited import Audited
from rompatch.workflows.auditing import audit_manifest
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def recorded(store: Store, patches: list[Patch]) -> list[Patch]:
    for patch in patches:
        path = store.blobs.put(patch)
        store.ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
        store.remember_spec(store.resolve(patch.id).base_id, BaseSpec(patch.header.base.source))
    return patches


@pytest.fixture
def five(store: Store, saved_base: Path) -> list[Patch]:
    """Five patches in the store: four at layer 1, one at layers 1 and 2."""
    base = pico_base("llama")
    made = [fact_patch(base, seed) for seed in range(4)] + [fact_patch(base, 4, 1, 2)]
    for patch in made:
        object.__setattr__(patch.header.base, "source", str(saved_base))
    return recorded(store, made)


def session_saved(folder: Path, patches: list[Patch], dtype: torch.dtype = torch.float32) -> Path:
    """What a person gets who saves a live model, without bake and without a manifest."""
    with PatchedModel(pico_base("llama")) as patched:
        patched.activate(patches)
        weights = {name: tensor.clone() for name, tensor in patched.model.state_dict().items()}
    model = pico_model("llama")
    model.load_state_dict(weights)
    model.to(dtype).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def inside(found: Audited) -> set[str]:
    return {patch.id for patch in found.patches if patch.status == "inside"}


@pytest.mark.parametrize("numbers", [(), (2,), (0, 1, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_patches_inside_are_found_without_a_manifest(
    store: Store, five: list[Patch], tmp_path: Path, numbers: tuple[int, ...], dtype: torch.dtype
) -> None:
    folder = session_saved(tmp_path / "merged", [five[number] for number in numbers], dtype)
    found = store.audit(folder)
    assert inside(found) == {five[number].id for number in numbers}
    assert found.is_clean
    assert all(tensor.explanation is not None and tensor.explanation.match == "exact" for tensor in found.tensors)
    assert not found.has_manifest
    touched = 0 if not numbers else 2 if 4 in numbers else 1
    assert len(found.tensors) == touched
    assert (found.equal == 0, found.rounded == 0) == ((True, False) if dtype == torch.bfloat16 else (False, True))
    json.dumps(found.to_json(), allow_nan=False)


def test_what_the_active_stack_lacks_is_named(store: Store, five: list[Patch], tmp_path: Path) -> None:
    store.apply(five[0].id, five[1].id)
    found = store.audit(session_saved(tmp_path / "merged", [five[0], five[2]]))
    status = {patch.id: (patch.status, patch.active) for patch in found.patches}
    assert status == {
        five[0].id: ("inside", True),
        five[1].id: ("missing", True),
        five[2].id: ("inside", False),
    }
    assert not found.is_clean
    assert "1 patch of the active stack is missing" in found.verdict


def test_a_patch_at_half_of_its_sites_is_inside_in_part(store: Store, five: list[Patch], tmp_path: Path) -> None:
    folder = session_saved(tmp_path / "merged", [five[4]])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_parameter("model.layers.2.mlp.down_proj.weight").data = (
        pico_model("llama").get_parameter("model.layers.2.mlp.down_proj.weight").data
    )
    model.save_pretrained(folder)
    store.apply(five[4].id)
    (patch,) = store.audit(folder).patches
    assert (patch.status, patch.sites, patch.sites_inside) == ("in part", 2, 1)


def test_a_patch_from_outside_the_ledger_is_left_over_with_its_rank(
    store: Store, five: list[Patch], tmp_path: Path
) -> None:
    stranger = fact_patch(pico_base("llama"), 77)
    found = store.audit(session_saved(tmp_path / "merged", [five[1], stranger]))
    assert inside(found) == {five[1].id}
    (tensor,) = found.unexplained
    assert tensor.explanation is not None
    assert tensor.explanation.remainder is not None
    assert tensor.explanation.remainder.rank is not None
    assert 1 <= tensor.explanation.remainder.rank <= 4  # the stranger's two keys, and what they move of the other's
    assert "no patch explains" in found.verdict


def test_noise_on_other_tensors_is_reported_with_its_size(store: Store, five: list[Patch], tmp_path: Path) -> None:
    folder = session_saved(tmp_path / "merged", [five[0]])
    model = AutoModelForCausalLM.from_pretrained(folder)
    weight = model.get_parameter(UP)
    before = weight.data.clone()
    weight.data += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    found = store.audit(folder)
    assert inside(found) == {five[0].id}
    (tensor,) = found.unexplained
    assert tensor.name == UP
    assert tensor.relative == pytest.approx(float((weight.data - before).norm() / before.norm()), rel=1e-5)


def test_missing_extra_and_reshaped_tensors_are_named(store: Store, five: list[Patch], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = session_saved(tmp_path / "merged", [five[0]])
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["value_head.weight"] = torch.zeros(3, 3)
    tensors[UP] = tensors[UP][:-1].clone()
    tensors["another_name_of_the_head"] = tensors["lm_head.weight"].clone()  # what tying saves twice
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = store.audit(folder)
    assert {tensor.name: tensor.status for tensor in found.unexplained} == {
        "model.norm.weight": "missing",
        "value_head.weight": "extra",
        UP: "reshaped",
    }


def test_a_bake_is_recognised_by_its_manifest_and_an_older_revision_by_the_ledger(
    store: Store, five: list[Patch], tmp_path: Path
) -> None:
    store.apply(five[0].id, five[3].id)
    store.bake(tmp_path / "edited")
    store.apply(five[1].id)
    found = store.audit(tmp_path / "edited")
    (tensor,) = found.tensors
    assert tensor.explanation is not None
    assert tensor.explanation.origin == "manifest"
    assert [patch.id for patch in found.missing] == [five[1].id]
    (tmp_path / "edited" / "rompatch_manifest.json").unlink()
    (tensor,) = store.audit(tmp_path / "edited").tensors
    assert tensor.explanation is not None
    assert tensor.explanation.origin == "revision 1 of main"
    assert set(tensor.patches) == {five[0].id, five[3].id}


def test_without_the_patches_the_manifest_s_claim_is_checked_by_hash_and_called_a_claim(
    store: Store, five: list[Patch], tmp_path: Path, saved_base: Path
) -> None:
    store.apply(five[0].id)
    store.bake(tmp_path / "edited")
    with open_store(tmp_path / "other") as empty:
        found = empty.audit(tmp_path / "edited", spec=BaseSpec(str(saved_base)))
    assert [(tensor.name, tensor.status) for tensor in found.tensors] == [(DOWN, "claimed")]
    assert [(patch.id, patch.status) for patch in found.patches] == [(five[0].id, "claimed")]
    assert not found.is_clean
    assert "as the manifest says" in found.verdict


@pytest.mark.parametrize("every", [False, True])
def test_the_manifest_alone_needs_neither_base_nor_store(
    store: Store, five: list[Patch], tmp_path: Path, every: bool
) -> None:
    store.apply(five[0].id, five[2].id)
    folder = store.bake(tmp_path / "edited", verify_all=every).report.folder
    found = audit_manifest(folder)
    assert found.is_clean
    assert {patch.id for patch in found.patches} == {five[0].id, five[2].id}
    assert (found.unchecked == 0) == every
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1  # of the last tensor, which no patch touches
    (folder / "model.safetensors").write_bytes(raw)
    assert audit_manifest(folder).is_clean != every
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"rompatch_manifest": 9}', '{"rompatch_manifest": 2, "patches": [{"id": "x"}]}', "[" * 9000],
)
def test_a_hostile_manifest_is_refused_with_the_way_out(tmp_path: Path, saved_base: Path, text: str) -> None:
    folder = save_pico(tmp_path / "found")
    (folder / "rompatch_manifest.json").write_text(text)
    with pytest.raises(ModelError, match=r"manifest .* cannot be read"):
        audit_manifest(folder)


def test_a_folder_without_a_manifest_or_without_a_model_says_what_to_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no manifest"):
        audit_manifest(save_pico(tmp_path / "plain"))
    with pytest.raises(ModelError, match="no checkpoint folder"):
        store.audit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        store.audit(tmp_path / "empty")
