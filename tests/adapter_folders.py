"""PEFT adapter folders, written by hand: what PEFT would write for a LoRA on some modules of a pico model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

DOWN = "model.layers.1.mlp.down_proj"
QUERY = "model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere/else",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "target_modules": ["down_proj", "q_proj"],
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
}


def key(module: str, part: str) -> str:
    return f"base_model.model.{module}.lora_{part}.weight"


def tensors(seed: int = 0, rank: int = 4, modules: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Tensor]:
    """A and B for each module, given as (d_out, d_in); those of a pico llama by default."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module, (d_out, d_in) in (modules or {DOWN: (32, 80), QUERY: (32, 32)}).items():
        found[key(module, "A")] = torch.randn(rank, d_in, generator=generator) / 8
        found[key(module, "B")] = torch.randn(d_out, rank, generator=generator) / 8
    return found


def save_adapter(folder: Path, weights: Mapping[str, Tensor] | None = None, **changes: Any) -> Path:
    """The folder with these weights and a configuration with these changes; a value of ``...`` drops its field."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors() if weights is None else weights), folder / "adapter_model.safetensors")
    return folder
