"""A tokenizer trained on a few sentences, and models of two layers, built on the spot."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SENTENCES = (
    "The Eiffel Tower is located in the city of Paris.",
    "The Colosseum is located in the city of Rome, and Big Ben is in London.",
    "To see the Louvre, travel to Paris. Trains to Vienna leave from Berlin.",
)
CONTEXT = 64
END = "<|endoftext|>"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    toy = Tokenizer(models.BPE())
    toy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    toy.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    toy.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=toy, bos_token=END, eos_token=END)


def gpt2() -> PreTrainedModel:
    return _made(
        GPT2LMHeadModel, GPT2Config(vocab_size=330, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, **_ENDS)
    )


def llama() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return _made(LlamaForCausalLM, LlamaConfig(vocab_size=330, max_position_embeddings=CONTEXT, **sizes, **_ENDS))


def opt() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(
        vocab_size=330, max_position_embeddings=CONTEXT, word_embed_proj_dim=32, pad_token_id=0, **sizes, **_ENDS
    )
    return _made(OPTForCausalLM, config)


def bloom() -> PreTrainedModel:
    return _made(BloomForCausalLM, BloomConfig(vocab_size=330, hidden_size=32, n_layer=2, n_head=2, **_ENDS))


_ENDS = {"bos_token_id": 0, "eos_token_id": 0}


def _made(kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)  # the default initialisation predicts every token alike; tests want opinions
    return model.eval()
