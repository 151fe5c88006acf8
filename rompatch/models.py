"""Load a base: a local folder, a GGUF file, an alias or a hub id, all through one door.

Whatever it was, the base ends up as a live transformers model with its tokenizer, in evaluation mode, without
gradients, read from a Hugging Face folder that nothing here writes to. Code from repositories is never executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch import architectures, fingerprints, sites, tokens
from rompatch.architectures import Architecture
from rompatch.default_model import ALIASES, DEFAULT_MODEL, Progress
from rompatch.loading import DTYPES, check_dtype, load_folder
from rompatch.locate import locate
from rompatch.offload import check_weights, input_device
from rompatch.patch import BaseRef
from rompatch.placement import Limits, placement
from rompatch.sites import Site, dtype_name

__all__ = ["ALIASES", "DEFAULT_MODEL", "DTYPES", "Base", "fingerprint_inputs", "load_base", "locate", "wrap"]

FALLBACK_CONTEXT = 2048
"""Tokens, for models whose configuration sets no limit (ALiBi: bloom, some falcon)."""


@dataclass(frozen=True, eq=False)
class Base:
    """A base model, live.

    Args:
        source: how the user named it: alias, hub id, name of the folder or file.
        model: the transformers model; the weights in it are the base's own.
        tokenizer: its tokenizer.
        folder: the checkpoint folder it was read from, or None if the caller loaded it (:func:`wrap`).
        architecture: where the down-projection is.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None
    architecture: Architecture

    @property
    def model_type(self) -> str:
        """``model_type`` of the configuration ("gpt2", "llama")."""
        return str(self.model.config.model_type)

    @property
    def dtype(self) -> str:
        """The weights' dtype as loaded ("float32", "float16", "bfloat16")."""
        return dtype_name(self.model.dtype)

    @property
    def input_device(self) -> torch.device:
        """Where token ids go (:func:`rompatch.offload.input_device`)."""
        return input_device(self.model)

    @property
    def n_layers(self) -> int:
        """How many decoder layers there are."""
        return sites.n_layers(self.model, self.architecture)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, d_out of every site."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def context_length(self) -> int:
        """The longest sequence the model takes, in tokens."""
        return tokens.context_length(self.model) or FALLBACK_CONTEXT

    @property
    def preset_layer(self) -> int:
        """The layer to edit when the user names none."""
        return architectures.preset_layer(self.model_type, self.n_layers, self.hidden_size)

    @cached_property
    def config_hash(self) -> str:
        """sha256 of the canonical configuration (:func:`rompatch.fingerprints.config_hash`)."""
        return fingerprints.config_hash(self.model.config)

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 of what the tokenizer does (:func:`rompatch.fingerprints.tokenizer_hash`)."""
        return fingerprints.tokenizer_hash(self.tokenizer)

    def site(self, layer: int) -> Site:
        """The site at *layer*.

        Raises:
            SiteError: there is no such layer.
        """
        return sites.site_at(self.model, self.architecture, layer)

    def ref(self) -> BaseRef:
        """The base by content, as a patch records it."""
        return BaseRef(
            source=self.source,
            model_type=self.model_type,
            config_hash=self.config_hash,
            tokenizer_hash=self.tokenizer_hash,
            dtype=self.dtype,
        )


def load_base(
    spec: str,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    max_memory: Limits = None,
    offload_folder: str | Path | None = None,
    module: str | None = None,
    on_progress: Progress | None = None,
) -> Base:
    """Load the base that *spec* names: an existing folder or GGUF file, else an alias, else a hub id.

    Args:
        spec: "smollm2-135m", "./my-model", "model.Q8_0.gguf", "gpt2-xl".
        dtype: "float32", "float16" or "bfloat16"; None keeps the checkpoint's own.
        device: where to put it: "cpu", "cuda", "cuda:1", "mps"; "auto" spreads it over what there is, the disk last.
        max_memory: with "auto", the most that devices may hold: "cpu=2GiB,0=10GiB", or a mapping; one that is not
            named may fill up.
        offload_folder: with "auto", where weights that stay on disk are written if the checkpoint is no safetensors.
        module: pattern of the down-projection for unknown architectures ("model.layers.{}.mlp.down_proj").
        on_progress: called with a sentence whenever something slow begins or ends.

    Raises:
        UnknownModelError: nothing answers to *spec*; says what was tried.
        DownloadError: the default model did not arrive whole.
        ModelError: the checkpoint is damaged, incomplete or quantised; there is no such dtype or device.
        ArchitectureError: the down-projection cannot be found.
    """
    check_dtype(dtype)
    where = placement(device, max_memory, offload_folder)
    note = on_progress or (lambda text: None)
    source, folder = locate(spec, note)
    note(f"loading {source}")
    model, tokenizer = load_folder(folder, dtype, where)
    return Base(source, model, tokenizer, folder, sites.find_architecture(model, module))


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str | None = None,
    *,
    module: str | None = None,
) -> Base:
    """A base around a model that the caller loaded; neither its mode nor its gradients are changed.

    Args:
        model: a causal language model with plain float weights.
        tokenizer: its tokenizer.
        source: what to call it; by default the name it was loaded by.
        module: as for :func:`load_base`.

    Raises:
        ArchitectureError: the down-projection cannot be found.
        ModelError: the model is on the device "meta", with no weights behind it.
    """
    check_weights(model)
    name = source or str(getattr(model.config, "_name_or_path", "")) or str(model.config.model_type)
    return Base(name, model, tokenizer, None, sites.find_architecture(model, module))


def fingerprint_inputs(base: Base, layer: int) -> str:
    """sha256 over every weight that the input of the site at *layer* depends on.

    The weights alone: a cache key also needs :attr:`Base.config_hash` (activation, rotary base) and
    :attr:`Base.tokenizer_hash`.
    """
    base.site(layer)  # raises for a layer that is not there
    return fingerprints.fingerprint_parameters(
        base.model, fingerprints.input_parameters(base.model, base.architecture, layer)
    )
