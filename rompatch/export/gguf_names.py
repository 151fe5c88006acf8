"""What llama.cpp calls a base's architecture and its weights: gguf's own tables, asked by the base's module names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf

from rompatch.errors import OutputError
from rompatch.export.lowrank import SiteDelta

ARCHITECTURES = {
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "bloom": "bloom",
    "falcon": "falcon",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
    "phi": "phi2",
    "phi3": "phi3",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "stablelm": "stablelm",
}
"""``model_type`` to llama.cpp's architecture. gpt_neo and opt have none; gptj has a name there, but no model."""

_KNOWN = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
_TEXT_PART = "language_model."
"""A part of the names in models that also see; the converter leaves it out, and gguf's tables know names without."""


def architecture_of(model_type: str) -> str:
    """llama.cpp's architecture for bases of *model_type*.

    Raises:
        OutputError: it has none.
    """
    name = ARCHITECTURES.get(model_type)
    if name is None:
        raise OutputError(
            f"llama.cpp has no architecture for models of type {model_type!r}, so there is no GGUF adapter for it.",
            expected=", ".join(ARCHITECTURES),
            found=model_type,
            next_step="Export for transformers instead: `rompatch export peft OUT`, or `rompatch bake OUT`.",
        )
    return name


def tensor_names(deltas: Sequence[SiteDelta], architecture: str, n_layers: int) -> dict[str, str]:
    """Parameter name to tensor name ("blk.4.ffn_down.weight").

    Raises:
        OutputError: llama.cpp has no such tensor in that architecture.
    """
    table = gguf.get_tensor_name_map(_KNOWN[architecture], n_layers)
    found = {}
    for delta in deltas:
        name = table.get_name(delta.module.replace(_TEXT_PART, ""))
        if name is None or not delta.ref.parameter.endswith(".weight"):
            raise OutputError(
                f"llama.cpp has no tensor for {delta.ref.parameter} in its architecture {architecture!r}.",
                expected="the down-projection of a layer",
                next_step="Export for transformers instead: `rompatch export peft OUT`, or `rompatch bake OUT`.",
            )
        found[delta.ref.parameter] = f"{name}.weight"
    return found


def check_architecture(found: str | None, wanted: str, path: Path) -> None:
    """Whether the GGUF file *path*, of architecture *found*, is a base for an adapter of architecture *wanted*.

    Raises:
        OutputError: it is not.
    """
    if found != wanted:
        raise OutputError(
            f"The GGUF file {path} is of another architecture than these patches' base.",
            expected=wanted,
            found=found or "no architecture",
            next_step="Name a GGUF file of the patches' own base.",
        )
