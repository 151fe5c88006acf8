"""Content hashes of what a patch depends on: configuration, tokenizer, and the weights below a site.

Names are never enough: an edited model, a new revision of a repository and a retrained tokenizer keep theirs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rompatch.architectures import Architecture
from rompatch.offload import parameter_of
from rompatch.patch import canonical_json
from rompatch.sites import tensor_sha256
from rompatch.tokenizer_hash import pipeline_hash, value_hash

VOLATILE = frozenset(
    {
        "architectures",  # which class was saved, not what it computes
        "dtype",  # recorded in the patch by itself
        "torch_dtype",
        "quantization_config",  # how the weights came in; their hashes say what they are
        "transformers_version",
        "use_cache",  # speed only
    }
)
"""Configuration fields that may change without changing the model; so may all that begin with an underscore."""

FINAL_NORMS = frozenset({"norm", "ln_f", "final_layer_norm", "final_layernorm"})
"""Names of the norm after the last layer, a sibling of the layer list."""


def config_hash(config: PreTrainedConfig) -> str:
    """sha256 of the canonical configuration; equal after saving and loading, and for any dtype."""
    return _sha256(canonical_json(_stable(config.to_dict())))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what the tokenizer does: its serialised pipeline and the ids of its special tokens.

    Padding and truncation are left out, the padding token too: they are settings of a call, and what is padded is
    masked. A tokenizer without a serialisable backend is hashed by its class and vocabulary.
    """
    special = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in tokenizer.special_tokens_map.items()
        if name != "pad_token" and isinstance(token, str)
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return value_hash({"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}, special)
    return pipeline_hash(backend.to_str(), special)


def input_parameters(model: PreTrainedModel, architecture: Architecture, layer: int) -> list[str]:
    """Names of the parameters that the input of the site at *layer* can depend on.

    Everything except later layers, the final norm and the output head: too many rather than too few (the rest of the
    layer itself is in). A head that is tied to the embeddings is in, as the embeddings.
    """
    prefix = f"{architecture.layers}."
    parent = architecture.layers.rpartition(".")[0]
    head = _untied_head(model)
    kept = []
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            index = name[len(prefix) :].split(".", 1)[0]
            if index.isdigit() and int(index) > layer:
                continue
        elif id(parameter) in head or name.rpartition(".")[0] in {f"{parent}.{norm}" for norm in FINAL_NORMS}:
            continue
        kept.append(name)
    return kept


def fingerprint_parameters(model: PreTrainedModel, names: Iterable[str]) -> str:
    """sha256 over name, dtype, shape and tensor hash of each parameter, in order of name.

    One at a time: of a model larger than memory no more than one weight is brought in.
    """
    lines = []
    for name in sorted(names):
        tensor = parameter_of(model, name)
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor_sha256(tensor)}\n")
    return _sha256("".join(lines))


def _untied_head(model: PreTrainedModel) -> set[int]:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        return set()
    tied = {id(parameter) for parameter in embeddings.parameters()}
    return {id(parameter) for parameter in head.parameters()} - tied


def _stable(value: Any) -> Any:
    """*value* as JSON would give it back, without the volatile fields at any depth."""
    if isinstance(value, Mapping):
        return {
            str(key): _stable(item)
            for key, item in value.items()
            if str(key) not in VOLATILE and not str(key).startswith("_")
        }
    if isinstance(value, (list, tuple)):
        return [_stable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # canonical JSON has no NaN and no infinity
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
