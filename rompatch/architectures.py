"""Where the MLP down-projection is, for every architecture we know by name.

A table, no code path per architecture: a row names the list of decoder layers and the down-projection inside one
layer. The orientation is *not* in the table. It comes from the module's type (``Conv1D`` stores W^T, ``Linear``
stores W), because on a square matrix the shape fits both ways.

Preset layers: the layer an edit is written to when the user names none. Published ones are those of Meng et al.
2022 (GPT-2 XL 17, GPT-J 5) and of the editing literature since; otherwise a seventh of the depth, which is where the
published ones and our own measurements on the default model (layer 4 of 30) fall.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One row: ``layers`` is the dotted path of the layer list, ``down_proj`` the path inside a layer."""

    model_type: str
    layers: str
    down_proj: str

    def module(self, layer: int) -> str:
        """Dotted module name of the down-projection in *layer*."""
        return f"{self.layers}.{layer}.{self.down_proj}"

    @property
    def pattern(self) -> str:
        """The same with ``{}`` for the layer, as ``--module`` takes it."""
        return f"{self.layers}.{{}}.{self.down_proj}"


_GPT2_LIKE = "transformer.h"
_LLAMA_LIKE = "model.layers"

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("gpt2", _GPT2_LIKE, "mlp.c_proj"),
        Architecture("gpt_neo", _GPT2_LIKE, "mlp.c_proj"),
        Architecture("gptj", _GPT2_LIKE, "mlp.fc_out"),
        Architecture("gpt_neox", "gpt_neox.layers", "mlp.dense_4h_to_h"),
        Architecture("opt", "model.decoder.layers", "fc2"),
        Architecture("bloom", _GPT2_LIKE, "mlp.dense_4h_to_h"),
        Architecture("falcon", _GPT2_LIKE, "mlp.dense_4h_to_h"),
        Architecture("llama", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("mistral", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("qwen2", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("qwen3", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("gemma", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("gemma2", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("gemma3_text", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("gemma3", "model.language_model.layers", "mlp.down_proj"),
        Architecture("phi", _LLAMA_LIKE, "mlp.fc2"),
        Architecture("phi3", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("olmo", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("olmo2", _LLAMA_LIKE, "mlp.down_proj"),
        Architecture("stablelm", _LLAMA_LIKE, "mlp.down_proj"),
    )
}

PRESET_LAYERS: dict[tuple[str, int, int], int] = {
    # (model_type, number of layers, hidden size): layer
    ("gpt2", 24, 1024): 8,
    ("gpt2", 36, 1280): 12,
    ("gpt2", 48, 1600): 17,
    ("gptj", 28, 4096): 5,
    ("llama", 32, 4096): 5,
    ("mistral", 32, 4096): 5,
    ("qwen2", 28, 3584): 5,
}


def preset_layer(model_type: str, n_layers: int, hidden_size: int) -> int:
    """The layer to edit when none is named: the published or measured one, else a seventh of the depth."""
    published = PRESET_LAYERS.get((model_type, n_layers, hidden_size))
    return published if published is not None else min(n_layers // 7, n_layers - 1)
