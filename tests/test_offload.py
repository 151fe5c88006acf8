"""Where a weight really is: models without weights are refused, stopped passes leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights
from offloading import OFFLOADS, blocks, offloaded_base
from pico import pico_base, pico_model, toy_tokenizer
from random_patches import random_patch
from transformers import AutoModelForCausalLM

from rompatch.apply.session import PatchedModel
from rompatch.errors import ModelError
from rompatch.hooks import capture_inputs, edit_output, until_stopped
from rompatch.models import wrap
from rompatch.offload import WeightSlot, check_weights, input_device, parameter_of, tensor_of

OFFLOADED = [how for how in OFFLOADS if how != "hooks only"]


def test_a_model_without_weights_is_refused_by_name() -> None:
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(pico_model("llama").config)
    with pytest.raises(ModelError, match=r"no weights.*model\.embed_tokens\.weight on the device 'meta'"):
        wrap(empty, toy_tokenizer())
    with pytest.raises(ModelError, match="no weights"):
        input_device(empty)
    with pytest.raises(ModelError, match="no weights"):
        parameter_of(empty, "model.layers.1.mlp.down_proj.weight")


def test_one_empty_weight_is_found_among_whole_ones() -> None:
    model = pico_model("llama")
    model.model.layers[2].mlp.up_proj.to("meta")
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        check_weights(model)


def test_a_whole_model_and_an_offloaded_one_have_weights(tmp_path: Path) -> None:
    check_weights(pico_model("llama"))
    for how in OFFLOADS:
        base = offloaded_base("gpt2", how, tmp_path / how)
        assert base.input_device == torch.device("cpu")


def test_token_ids_go_where_the_embeddings_run_and_states_follow_the_layers() -> None:
    """Layers above the first on a second device: "meta" computes shapes on any machine."""
    base = pico_base("llama")
    places = {name: "meta" if later else "cpu" for name, later in blocks(base.model)}
    dispatch_model(base.model, places, main_device=torch.device("cpu"))
    assert base.input_device == torch.device("cpu")
    ids = torch.tensor([[1, 2, 3]], device=base.input_device)
    for layer, expected in ((0, "cpu"), (2, "meta")):
        with capture_inputs(base.site(layer).module, stop=True) as seen, until_stopped():
            base.model(input_ids=ids, use_cache=False)
        assert seen[0].device.type == expected


@pytest.mark.parametrize("how", OFFLOADS)
def test_a_pass_that_was_stopped_midway_does_not_change_what_is_read(how: str, tmp_path: Path) -> None:
    base = offloaded_base("llama", how, tmp_path)
    site, expected = base.site(1), pico_base("llama").site(1).stored()
    original = base.model(input_ids=torch.tensor([[1, 2, 3]])).logits

    def interrupted(_output: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with PatchedModel(base) as patched:
        patched.activate([random_patch(base, 0)])
        edited = site.stored().clone()
        # Inside the module's own forward, where accelerate has brought the weight in and not yet dropped it.
        site.module.weight = torch.nn.Parameter(edited.clone(), requires_grad=False)
        with pytest.raises(KeyboardInterrupt), edit_output(site.module, interrupted):
            base.model(input_ids=torch.tensor([[1, 2, 3]]))
        assert torch.equal(site.stored(), edited)
        assert not torch.equal(edited, expected)
    assert torch.equal(site.stored(), expected)
    assert torch.equal(base.model(input_ids=torch.tensor([[1, 2, 3]])).logits, original)


@pytest.mark.parametrize("how", OFFLOADED)
def test_a_slot_holds_no_second_copy_and_remembers_the_original(how: str, tmp_path: Path) -> None:
    base = offloaded_base("gpt2", how, tmp_path)
    module = base.site(1).module
    slot, original = WeightSlot(module), tensor_of(module).clone()
    slot.exchange(torch.zeros_like(original))
    assert not tensor_of(module).any()
    assert torch.equal(slot.stored(), original)
    assert module.weight.device.type == "meta"
    slot.restore()
    assert torch.equal(tensor_of(module), original)


def test_a_saved_offloaded_model_has_the_edit_in_it(tmp_path: Path) -> None:
    base = offloaded_base("llama", "partly on disk", tmp_path)
    patch = random_patch(base, 0)
    with PatchedModel(base) as patched:
        patched.activate([patch])
        edited = base.site(1).stored().clone()
        base.model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.model.layers[1].mlp.down_proj.weight, edited)
