"""A LoRA as a patch: the numbers are PEFT's, what is no plain LoRA is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_folders import DOWN, QUERY, key, save_adapter, tensors
from pico import pico_base, toy_tokenizer
from random_patches import random_patch

from rompatch.adapters.peft_lora import read_adapter
from rompatch.apply.session import PatchedModel
from rompatch.errors import AdapterError, RequestError
from rompatch.models import Base
from rompatch.sites import tensor_sha256

BASE = pico_base()


def deltas(base: Base, patches: list[Any]) -> dict[str, torch.Tensor]:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    with PatchedModel(base) as patched:
        patched.activate(patches)
        after = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def test_the_update_is_scale_b_a_and_nothing_else_changes(tmp_path: Path) -> None:
    found = deltas(BASE, [read_adapter(save_adapter(tmp_path), BASE, "style").patch])
    weights = tensors()
    assert found.keys() == {f"{DOWN}.weight", f"{QUERY}.weight"}
    for module in (DOWN, QUERY):
        expected = 2.0 * weights[key(module, "B")] @ weights[key(module, "A")]  # alpha 8 over r 4
        torch.testing.assert_close(found[f"{module}.weight"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"lora_alpha": 2}, 0.5),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"down_proj": 12}}, 3.0),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 12, "down_proj": 2}}, 3.0),
        ({"alpha_pattern": {"own_proj": 12}}, 2.0),
        ({"alpha_pattern": {"q_proj": 12}}, 2.0),
        ({"r": 16, "rank_pattern": {"down_proj": 4}, "lora_alpha": 16}, 4.0),
    ],
)
def test_the_scale_follows_the_configuration(changes: dict[str, Any], scale: float, tmp_path: Path) -> None:
    weights = {name: one for name, one in tensors().items() if DOWN in name}
    patch = read_adapter(save_adapter(tmp_path, weights, **changes), BASE, "style").patch
    expected = scale * weights[key(DOWN, "B")].numpy()
    np.testing.assert_allclose(patch.factors[0].left, expected, rtol=1e-6)


def test_a_conv1d_is_read_by_its_type_whatever_the_configuration_says(tmp_path: Path) -> None:
    base = pico_base("gpt2")
    module = "transformer.h.1.mlp.c_proj"
    weights = tensors(modules={module: (32, 128)})
    for told in (True, False):
        folder = save_adapter(tmp_path / str(told), weights, fan_in_fan_out=told)
        found = deltas(base, [read_adapter(folder, base, "style").patch])
        expected = (2.0 * weights[key(module, "B")] @ weights[key(module, "A")]).T
        torch.testing.assert_close(found[f"{module}.weight"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_adapters_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: one.to(dtype) for name, one in tensors().items()}
    patch = read_adapter(save_adapter(tmp_path, weights), BASE, "style").patch
    np.testing.assert_array_equal(patch.factors[0].right, weights[key(QUERY, "A")].float().numpy())


def test_beside_a_fact_it_is_added_and_reverting_it_leaves_no_trace(tmp_path: Path) -> None:
    adapter, fact = read_adapter(save_adapter(tmp_path), BASE, "style").patch, random_patch(BASE, 1)
    one, other, both = (deltas(BASE, patches)[f"{DOWN}.weight"] for patches in ([adapter], [fact], [adapter, fact]))
    torch.testing.assert_close(both, one + other, atol=1e-5, rtol=1e-5)
    name = fact.header.sites[0].parameter
    with PatchedModel(BASE) as patched:
        patched.activate([fact])
        alone = tensor_sha256(BASE.model.get_parameter(name))
        patched.apply(adapter)
        patched.revert(adapter.id)
        assert tensor_sha256(BASE.model.get_parameter(name)) == alone


def test_the_id_depends_on_the_content_alone(tmp_path: Path) -> None:
    one, same = (read_adapter(save_adapter(tmp_path / name), BASE, "style").patch for name in ("a", "b"))
    assert one == same
    assert read_adapter(tmp_path / "a", BASE, "another name").patch != one
    assert read_adapter(save_adapter(tmp_path / "c", tensors(1)), BASE, "style").patch != one


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "another kind"),
    "no kind": ({"peft_type": ...}, "another kind"),
    "biases": ({"bias": "all"}, "biases"),
    "a bias of B": ({"lora_bias": True}, "biases"),
    "dora": ({"use_dora": True}, "DoRA"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "whole modules"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
    "a field of the future": ({"use_whatever": {"x": 1}}, "use_whatever is set"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
    "parameters of experts": ({"target_parameters": ["x"]}, "target_parameters is set"),
    "r of 0": ({"r": 0}, "is not what it should be"),
    "r of text": ({"r": "4"}, "is not what it should be"),
    "r of another size": ({"r": 3}, "does not fit"),
    "alpha of infinity": ({"lora_alpha": 1e300}, "is not what it should be"),
    "no alpha": ({"lora_alpha": ...}, "is not what it should be"),
    "rslora of text": ({"use_rslora": "yes"}, "is not what it should be"),
    "a pattern that takes forever": ({"alpha_pattern": {"(a+)+": 1}}, "too general"),
    "a pattern that is none": ({"alpha_pattern": {"(": 1}}, "too general"),
    "a pattern of text": ({"rank_pattern": "x"}, "no object of positive numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_lora_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changes, reason = REFUSED[name]
    with pytest.raises(AdapterError, match=reason) as caught:
        read_adapter(save_adapter(tmp_path, **changes), BASE, "style")
    assert caught.value.next_step


def changed(**more: torch.Tensor | None) -> dict[str, torch.Tensor]:
    weights: dict[str, Any] = {**tensors(), **more}
    return {name: one for name, one in weights.items() if one is not None}


DAMAGED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "nothing": ({}, "0 modules"),
    "an embedding": (changed(**{"base_model.model.x.lora_embedding_A": torch.ones(1, 1)}), "embeddings"),
    "a magnitude": (changed(**{"base_model.model.x.lora_magnitude_vector": torch.ones(1)}), "more than A and B"),
    "a bias": (changed(**{"base_model.model.x.bias": torch.ones(1)}), "more than A and B"),
    "no B": (changed(**{key(DOWN, "B"): None}), "only one of A and B"),
    "no such module": (tensors(modules={"model.layers.7.mlp.down_proj": (32, 80)}), "does not fit"),
    "a module that is no matrix": (tensors(modules={"model.layers.0.mlp": (32, 80)}), "does not fit"),
    "an embedding as a module": (tensors(modules={"model.embed_tokens": (400, 32)}), "does not fit"),
    "another width": (tensors(modules={DOWN: (32, 81)}), "does not fit"),
    "turned": (tensors(modules={DOWN: (80, 32)}), "does not fit"),
    "A of three dimensions": (changed(**{key(DOWN, "A"): torch.ones(4, 80, 1)}), "no matrix"),
    "whole numbers": (changed(**{key(DOWN, "A"): torch.ones(4, 80, dtype=torch.int32)}), "no float matrix"),
    "NaN": (changed(**{key(DOWN, "A"): torch.full((4, 80), math.nan)}), "NaN or infinity"),
    "too large when scaled": (changed(**{key(DOWN, "B"): torch.full((32, 4), 3e38)}), "NaN or infinity"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_weights_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    weights, reason = DAMAGED[name]
    with pytest.raises(AdapterError, match=reason):
        read_adapter(save_adapter(tmp_path, weights), BASE, "style")


def test_a_rank_too_high_is_refused_unless_allowed(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, tensors(rank=65), r=65)
    with pytest.raises(AdapterError, match="--max-rank 65"):
        read_adapter(folder, BASE, "style")
    assert read_adapter(folder, BASE, "style", max_rank=65).ranks[f"{DOWN}.weight"] == 65


def test_a_weight_that_the_embeddings_share_is_refused(tmp_path: Path) -> None:
    base = pico_base("gpt2")
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    with pytest.raises(AdapterError, match="shares its weight with the embeddings"):
        read_adapter(save_adapter(tmp_path, tensors(modules={"lm_head": (400, 32)})), base, "style")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("adapter_config.json", None, "no PEFT adapter"),
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b"\xff\xfe", "not UTF-8"),
        ("adapter_config.json", b'{"r": NaN}', "NaN"),
        ("adapter_config.json", b'{"r": 1, "r": 2}', "occurs twice"),
        ("adapter_config.json", b" " * (1 << 21), "too large"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("adapter_model.safetensors", b"", "cannot be read"),
        ("adapter_model.safetensors", b"\xff" * 64, "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused(file: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    save_adapter(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(AdapterError, match=reason):
        read_adapter(tmp_path, BASE, "style")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    save_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        read_adapter(tmp_path, BASE, "style")


@pytest.mark.parametrize("title", ["", "  ", "x\n", "x" * 201])
def test_a_title_that_is_none_is_refused(title: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        read_adapter(save_adapter(tmp_path), BASE, title)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_logits_are_those_of_peft(model_type: str, tmp_path: Path) -> None:
    """An adapter that PEFT itself made and saved, several ranks and scales, on PEFT's own model and in a session."""
    import peft  # seconds, so only here

    base, twin = pico_base(model_type), pico_base(model_type)
    targets = ["down_proj", "q_proj"] if model_type == "llama" else ["c_proj", "c_attn"]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=model_type == "gpt2",
        target_modules=targets,
        rank_pattern={targets[0]: 2},
        alpha_pattern={f"{'h' if model_type == 'gpt2' else 'layers'}.1.mlp.{targets[0]}": 20},
        fan_in_fan_out=model_type == "gpt2",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(twin.model, config).eval()
    adapted.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    tokens = toy_tokenizer()("The Eiffel Tower is located in the city of", return_tensors="pt")["input_ids"]
    with torch.no_grad(), PatchedModel(base) as patched:
        before = base.model(tokens).logits
        patched.activate([read_adapter(tmp_path, base, "style").patch])
        found, expected = base.model(tokens).logits, adapted(tokens).logits
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
