"""Finding the matrix to edit: by table, by pattern, by structure; refusing to guess."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from pico import N_LAYERS, VOCAB, pico_base, pico_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rompatch.architectures import ARCHITECTURES, Architecture, preset_layer
from rompatch.errors import ArchitectureError, SiteError
from rompatch.sites import (
    dtype_name,
    find_architecture,
    is_transposed,
    layer_modules,
    n_layers,
    site_at,
    site_of_parameter,
    tensor_sha256,
)

LLAMA = "model.layers.{}.mlp.down_proj"


def stranger(model_type: str = "llama") -> PreTrainedModel:
    """A model of a known build whose ``model_type`` nobody knows."""
    model = pico_model(model_type)
    model.config.model_type = "never-heard-of"
    return model


def pico_mixtral() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    return AutoModelForCausalLM.from_config(config)


class PackedLinear(nn.Linear):
    """A quantised layer as some libraries build it: a subclass of Linear whose weight is packed integers."""

    def __init__(self) -> None:
        super().__init__(80, 32, bias=False)
        self.weight = nn.Parameter(torch.zeros(32 * 80 // 2, 1, dtype=torch.uint8), requires_grad=False)


def test_a_known_model_type_is_found_in_the_table() -> None:
    assert find_architecture(pico_model("llama")) is ARCHITECTURES["llama"]
    assert find_architecture(pico_model("gpt2")) is ARCHITECTURES["gpt2"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "opt"])
def test_an_unknown_model_type_is_found_by_its_structure(model_type: str) -> None:
    known = ARCHITECTURES[model_type]
    assert find_architecture(stranger(model_type)) == Architecture("never-heard-of", known.layers, known.down_proj)


def test_a_known_type_with_another_build_is_found_by_its_structure() -> None:
    model = pico_model("gpt2")
    model.config.model_type = "llama"  # the table's row does not fit
    assert find_architecture(model).pattern == "transformer.h.{}.mlp.c_proj"


def test_a_pattern_wins_over_the_table() -> None:
    row = find_architecture(pico_model("llama"), "model.layers.{}.self_attn.o_proj")
    assert row.module(2) == "model.layers.2.self_attn.o_proj"
    assert find_architecture(stranger(), LLAMA).pattern == LLAMA


@pytest.mark.parametrize(
    "pattern", ["mlp.down_proj", "model.layers.0.mlp.down_proj", "{}", "a.{}.b.{}.c", "", "x {}.y"]
)
def test_a_pattern_that_cannot_be_read_is_refused_with_an_example(pattern: str) -> None:
    with pytest.raises(ArchitectureError, match=r"model\.layers\.\{\}\.mlp\.down_proj"):
        find_architecture(pico_model("llama"), pattern)


def test_a_pattern_that_names_nothing_is_answered_with_the_candidates() -> None:
    with pytest.raises(ArchitectureError, match=r"no module model\.layers\.0\.mlp\.fc9") as caught:
        find_architecture(pico_model("llama"), "model.layers.{}.mlp.fc9")
    assert LLAMA in str(caught.value)
    assert "--module" in str(caught.value)


def test_a_pattern_that_names_no_linear_module_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="LlamaMLP"):
        find_architecture(pico_model("llama"), "model.layers.{}.mlp")


def test_two_fitting_modules_are_named_instead_of_guessed() -> None:
    model = stranger()
    for layer in model.model.layers:
        layer.mlp.second = nn.Linear(80, 32)
    with pytest.raises(ArchitectureError, match="--module") as caught:
        find_architecture(model)
    assert caught.value.candidates == [LLAMA, "model.layers.{}.mlp.second"]
    assert all(candidate in str(caught.value) for candidate in caught.value.candidates)
    assert find_architecture(model, LLAMA).pattern == LLAMA, "and naming one settles it"


def test_experts_that_are_modules_are_named_one_by_one() -> None:
    model = stranger()
    for layer in model.model.layers:
        layer.mlp.experts = nn.ModuleList([nn.Linear(80, 32), nn.Linear(80, 32)])
        del layer.mlp.down_proj
    with pytest.raises(ArchitectureError, match="one per expert") as caught:
        find_architecture(model)
    assert caught.value.candidates == [f"model.layers.{{}}.mlp.experts.{i}" for i in (0, 1)]


def test_experts_in_one_tensor_are_refused_and_named() -> None:
    with pytest.raises(ArchitectureError, match="--module") as caught:
        find_architecture(pico_mixtral())
    assert "model.layers.{}.mlp.experts.down_proj, experts in one tensor of (2, 32, 80)" in str(caught.value)
    assert "model.layers.{}.self_attn.o_proj" in caught.value.candidates


def test_a_structure_without_layers_is_refused() -> None:
    model = stranger()
    model.config.num_hidden_layers = 99
    with pytest.raises(ArchitectureError, match="Found: none"):
        find_architecture(model)


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (PackedLinear(), "PackedLinear of uint8"),
        (nn.Linear(4, 4).to(torch.float8_e4m3fn), "Linear of float8_e4m3fn"),
        (nn.Embedding(4, 4), "Embedding of float32"),
        (nn.Conv1d(1, 1, 1), "Conv1d of float32"),
        (nn.Sequential(nn.Linear(4, 4)), "Sequential"),
    ],
)
def test_modules_other_than_plain_linear_ones_are_refused(module: nn.Module, found: str) -> None:
    with pytest.raises(ArchitectureError, match=found):
        is_transposed(module, "model.layers.0.mlp.down_proj")


def test_a_quantised_layer_is_refused_where_it_is_met() -> None:
    base = pico_base("llama")
    base.model.model.layers[1].mlp.down_proj = PackedLinear()
    base.site(0)
    with pytest.raises(ArchitectureError, match=r"layers\.1\.mlp\.down_proj cannot be edited"):
        base.site(1)


def test_the_module_type_tells_the_orientation_on_a_square_matrix() -> None:
    assert is_transposed(Conv1D(8, 8), "square")
    assert not is_transposed(nn.Linear(8, 8), "square")


@pytest.mark.parametrize("layer", [-1, N_LAYERS, 999])
def test_a_layer_that_is_not_there_is_refused_with_the_range(layer: int) -> None:
    model = pico_model("gpt2")
    with pytest.raises(SiteError, match=f"from 0 to {N_LAYERS - 1}"):
        site_at(model, ARCHITECTURES["gpt2"], layer)


def test_a_layer_without_the_module_is_refused() -> None:
    model = pico_model("llama")
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(SiteError, match=r"no module model\.layers\.1\.mlp\.down_proj"):
        site_at(model, ARCHITECTURES["llama"], 1)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_matrix_is_a_view_of_the_parameter_as_the_equations_see_it(model_type: str) -> None:
    base = pico_base(model_type)
    site = base.site(1)
    assert site.transposed == (model_type == "gpt2")
    assert site.matrix().data_ptr() == site.weight.data_ptr()
    assert site.matrix().shape == (site.d_out, site.d_in)
    inputs = torch.randn(3, site.d_in, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(site.d_out) if site.bias is None else site.bias
    torch.testing.assert_close(site.module(inputs), inputs @ site.matrix().T + bias)


def test_a_reference_names_the_parameter_by_content_and_finds_it_again() -> None:
    base = pico_base("gpt2")
    ref = base.site(1).ref()
    assert ref.sha256 == hashlib.sha256(base.site(1).weight.detach().numpy().tobytes()).hexdigest()
    assert (ref.d_out, ref.d_in, ref.dtype, ref.layer, ref.transposed) == (32, 128, "float32", 1, True)
    assert site_of_parameter(base.model, ref).weight is base.site(1).weight
    assert base.model.get_parameter(ref.parameter) is base.site(1).weight


def test_a_reference_into_another_model_is_refused() -> None:
    ref = replace(pico_base("gpt2").site(1).ref(), parameter="transformer.h.7.mlp.c_proj.weight")
    with pytest.raises(SiteError, match=r"transformer\.h\.7") as caught:
        site_of_parameter(pico_model("llama"), ref)
    assert caught.value.found == "llama"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_hash_is_that_of_the_bytes_whatever_the_strides(dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert tensor_sha256(tensor.T) == tensor_sha256(tensor.T.contiguous())
    assert tensor_sha256(tensor.T) != tensor_sha256(tensor)
    assert tensor_sha256(tensor) == hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
    changed = tensor.clone()
    changed[3, 5] += 1
    assert tensor_sha256(changed) != tensor_sha256(tensor)
    assert dtype_name(dtype) == str(dtype).split(".")[1]


def test_layers_are_counted_in_the_model_not_in_its_configuration() -> None:
    model = pico_model("llama")
    assert n_layers(model, ARCHITECTURES["llama"]) == N_LAYERS
    assert layer_modules(model, ARCHITECTURES["llama"])[2] is model.model.layers[2]


@pytest.mark.parametrize(
    ("shape", "layer"),
    [(("gpt2", 48, 1600), 17), (("gptj", 28, 4096), 5), (("llama", 30, 576), 4), (("olmo", 21, 64), 3)]
    + [(("llama", n, 8), 0) for n in (1, 2, 6)],
)
def test_the_preset_layer_is_published_or_a_seventh_of_the_depth(shape: tuple[str, int, int], layer: int) -> None:
    assert preset_layer(*shape) == layer
