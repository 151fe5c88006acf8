"""The PEFT adapter: real PEFT, and transformers alone, say with it what the session says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import IDS, deltas_of, origin_of, session_logits, stack_of
from peft import PeftModel
from peft.utils.other import get_pattern_key
from pico import pico_base
from safetensors.torch import load_file

from rompatch.errors import OutputError
from rompatch.export.lowrank import largest_rank
from rompatch.export.peft_lora import adapter_config, check_names, export_peft, vllm_rank
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.sites import tensor_sha256


def export(base: Base, patches: Sequence[Patch], out: Path, **options: Any) -> Path:
    modules = [name for name, _ in base.model.named_modules()]
    settings: dict[str, Any] = {"modules": modules, "base_name": "pico", "base_folder": None, **options}
    return export_peft(deltas_of(patches), origin_of(patches), out, **settings).path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


STACKS = {"one patch": (1, (1,)), "twenty patches": (20, (1,)), "layers of different ranks": (6, (0, 1, 1, 2, 2, 2))}


@pytest.mark.parametrize("what", STACKS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_peft_says_what_the_session_says(kind: str, what: str, tmp_path: Path) -> None:
    base, (n, layers) = pico_base(kind), STACKS[what]
    patches = stack_of(base, n, layers)
    wanted, plain = session_logits(base, patches), logits(base.model)
    model = PeftModel.from_pretrained(base.model, export(base, patches, tmp_path / "out"))
    assert (wanted - plain).abs().max() > 0.1
    assert (logits(model) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["gpt_neox", "gptj", "opt", "gpt_neo", "phi", "falcon", "bloom", "qwen3", "gemma3"])
def test_every_kind_of_name_is_found_by_peft(kind: str, tmp_path: Path) -> None:
    base = pico_base(kind)
    patches = stack_of(base, 3, (0, 2))
    wanted = session_logits(base, patches)
    model = PeftModel.from_pretrained(base.model, export(base, patches, tmp_path / "out"))
    assert (logits(model) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fact_sets_are_swapped_request_by_request_in_plain_transformers(kind: str, tmp_path: Path) -> None:
    base = pico_base(kind)
    sets = {"one": stack_of(base, 1), "many": stack_of(base, 9, (0, 1, 2))}
    wanted = {name: session_logits(base, patches) for name, patches in sets.items()}
    plain = logits(base.model)
    for name, patches in sets.items():
        base.model.load_adapter(str(export(base, patches, tmp_path / name)), adapter_name=name)
    for name in ("one", "many", "one"):
        base.model.set_adapter(name)
        assert (logits(base.model) - wanted[name]).abs().max() < 1e-4
    base.model.disable_adapters()
    assert torch.equal(logits(base.model), plain)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.02), ("bfloat16", 0.2)])
def test_half_precision_costs_what_it_says(dtype: str, bound: float, tmp_path: Path) -> None:
    base = pico_base()
    patches = stack_of(base, 20, (0, 1))
    wanted = session_logits(base, patches)
    out = export(base, patches, tmp_path / "out", dtype=dtype)
    assert {str(tensor.dtype) for tensor in load_file(out / "adapter_model.safetensors").values()} == {f"torch.{dtype}"}
    found = logits(PeftModel.from_pretrained(base.model, out))
    assert 1e-5 < (found - wanted).abs().max() < bound


def test_the_scale_is_one_at_every_module(tmp_path: Path) -> None:
    base = pico_base()
    model = PeftModel.from_pretrained(base.model, export(base, stack_of(base, 6, (0, 1, 1, 2, 2, 2)), tmp_path / "out"))
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len({layer.r["default"] for layer in layers.values()}) > 1
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}


def test_patterns_mean_one_module_each() -> None:
    """They are regular expressions to PEFT, where a dot would mean any character."""
    base = pico_base()
    deltas = deltas_of(stack_of(base, 6, (0, 1, 1, 2, 2, 2)))
    pattern = adapter_config(deltas, "pico")["rank_pattern"]
    for delta in deltas:
        assert pattern.get(get_pattern_key(pattern, delta.module), largest_rank(deltas)) == delta.rank
        assert all(re.fullmatch(key, delta.module.replace(".", "x")) is None for key in pattern)


def test_the_adapter_names_its_base_and_its_patches(tmp_path: Path) -> None:
    base = pico_base()
    patches = stack_of(base, 2)
    out = export(base, patches, tmp_path / "out", base_name="my-org/my-model")
    config, record = (json.loads((out / f"{name}.json").read_text()) for name in ("adapter_config", "rompatch_export"))
    assert config["base_model_name_or_path"] == "my-org/my-model"
    assert config["target_modules"] == ["model.layers.1.mlp.down_proj"]
    assert record["patches"] == sorted(patch.id for patch in patches)
    assert record["sites"][0]["sha256"] == base.site(1).ref().sha256


def test_equal_stacks_give_equal_bytes(tmp_path: Path) -> None:
    base = pico_base()
    patches = stack_of(base, 6, (0, 1, 2))
    folders = [export(base, order, tmp_path / str(n)) for n, order in enumerate((patches, patches[::-1]))]
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == other


def test_a_name_that_peft_would_match_wrongly_is_refused() -> None:
    deltas = deltas_of(stack_of(pico_base(), 1))
    name = deltas[0].module
    check_names(deltas, [name, "model"])
    for modules in ([], ["model.layers.11.mlp.down_proj"], [name, f"draft.{name}"]):
        with pytest.raises(OutputError, match="cannot be made") as caught:
            check_names(deltas, modules)
        assert "rompatch bake" in str(caught.value)


def test_both_orientations_in_one_adapter_are_refused() -> None:
    deltas = [*deltas_of(stack_of(pico_base(), 1)), *deltas_of(stack_of(pico_base("gpt2"), 1))]
    with pytest.raises(OutputError, match="one orientation"):
        check_names(deltas, [delta.module for delta in deltas])


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (2, 8), (8, 8), (257, 320), (512, 512), (513, None)])
def test_vllm_takes_some_ranks_only(rank: int, limit: int | None) -> None:
    assert vllm_rank(rank) == limit


def test_the_base_is_as_it_was_after_loading_and_unloading(tmp_path: Path) -> None:
    from rompatch.export.clients import ask_peft

    base = pico_base()
    before = {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}
    ask_peft(base.model, export(base, stack_of(base, 3), tmp_path / "out"), [[1, 2, 3]])
    assert {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()} == before
