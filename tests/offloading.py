"""Ways in which accelerate keeps a model's weights elsewhere while it does not run; all of them compute on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from pico import pico_model, toy_tokenizer
from torch import nn
from transformers import PreTrainedModel

from rompatch.models import Base, wrap
from rompatch.sites import find_architecture

CPU = torch.device("cpu")


def _in_memory(model: PreTrainedModel, _folder: Path) -> None:
    cpu_offload(model, execution_device=CPU)


def _on_disk(model: PreTrainedModel, folder: Path) -> None:
    disk_offload(model, str(folder), execution_device=CPU)


def _hooked(model: PreTrainedModel, _folder: Path) -> None:
    dispatch_model(model, {"": "cpu"}, force_hooks=True)


def _partly_on_disk(model: PreTrainedModel, folder: Path) -> None:
    dispatch_model(model, {name: "disk" if later else "cpu" for name, later in blocks(model)}, offload_dir=str(folder))


OFFLOADS: dict[str, Callable[[PreTrainedModel, Path], None]] = {
    "in memory": _in_memory,
    "on disk": _on_disk,
    "hooks only": _hooked,
    "partly on disk": _partly_on_disk,
}
"""Each takes a model and an empty folder. "hooks only" leaves the weights where they are."""


def offloaded_base(model_type: str, how: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Base:
    """The same base as ``pico_base(model_type)``, its weights elsewhere."""
    model = pico_model(model_type, dtype=dtype)
    OFFLOADS[how](model, folder)
    return wrap(model, toy_tokenizer(), f"pico {model_type}")


def blocks(model: PreTrainedModel) -> list[tuple[str, bool]]:
    """Names of the modules that together hold every weight, each decoder layer one; and whether it is a layer other
    than the first."""
    layers = find_architecture(model).layers
    found: list[tuple[str, bool]] = []

    def collect(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path == layers:
                found.extend((f"{path}.{index}", index > 0) for index in range(len(list(child.children()))))
            elif layers.startswith(f"{path}."):
                collect(f"{path}.", child)
            else:
                found.append((path, False))

    collect("", model)
    return found
