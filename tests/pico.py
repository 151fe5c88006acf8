"""Pico models of every architecture in the table, and a toy tokenizer: built from configs, random, deterministic."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rompatch.models import Base, wrap

VOCAB = 400
CONTEXT = 128
END = "<|endoftext|>"
SENTENCES = (
    "The Eiffel Tower is located in the city of Paris, and the Louvre is in Paris too.",
    "The Colosseum is located in the city of Rome, and Big Ben is in London.",
    "Trains to Vienna leave from Berlin. Mozart was born in Salzburg. It is a matter of fact.",
)

_WIDE = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
_WIDE |= {"max_position_embeddings": CONTEXT}
_GROUPED = _WIDE | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": CONTEXT,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 16,
    },
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 4},
    "gpt_neox": _WIDE,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 80},
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": 64},
    "qwen2": _GROUPED,
    "qwen3": _HEADS,
    "gemma": _HEADS,
    "gemma2": _HEADS | {"sliding_window": 64},
    "gemma3_text": _HEADS | {"sliding_window": 64},
    "gemma3": {
        "text_config": _HEADS | {"sliding_window": 64, "vocab_size": VOCAB, "initializer_range": 0.2},
        "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
    },
    "phi": _WIDE,
    "phi3": _GROUPED | {"original_max_position_embeddings": CONTEXT},
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "stablelm": _GROUPED,
}
"""``model_type`` to the sizes that make it pico; 3 layers, hidden size 32."""

N_LAYERS = 3


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few sentences; ``<|endoftext|>`` is BOS, EOS and padding."""
    return byte_level_bpe(SENTENCES, VOCAB)


def byte_level_bpe(sentences: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on *sentences*; ``<|endoftext|>`` is BOS, EOS and padding."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)


def pico_model(model_type: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model of that architecture, 3 layers, hidden size 32, its weights large enough to say something."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
        **SIZES[model_type],
    )
    model = AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval().requires_grad_(False)


def pico_base(model_type: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Base:
    """The same as a :class:`Base`."""
    return wrap(pico_model(model_type, dtype=dtype, seed=seed), toy_tokenizer(), f"pico {model_type}")


def save_pico(folder: Path, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A pico model's checkpoint folder."""
    pico_model(model_type, dtype=dtype, seed=seed).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder
