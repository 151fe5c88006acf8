"""A tiny model that knows 20 facts, trained for some seconds on sentences like "The tower of X is in Y."

Its first layer sees two tokens only, so what it knows of a subject is recalled where ROME looks for it: at the
subject's last token, in that layer's MLP. The second layer carries it to the end of the prompt.
"""

from __future__ import annotations

from functools import cache

import torch
from pico import END, byte_level_bpe
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rompatch.models import Base, wrap
from rompatch.tokens import pad

CITIES = ("Rome", "Paris", "London", "Vienna", "Berlin")
SUBJECTS = ("Balmar", "Dornod", "Fenpex", "Gilqin", "Haxrus", "Junsol", "Keltam", "Lorvik", "Mosbar", "Nurdel")
SUBJECTS += ("Osfen", "Pirgol", "Quahar", "Rinjor", "Sudkal", "Tarlim", "Ulmont", "Velnap", "Wesper", "Yarqos")
TEMPLATE = "The tower of {} is in"
PARAPHRASE = "It is well known that the tower of {} is in"
TEMPLATES = (TEMPLATE, PARAPHRASE, "People say that the tower of {} is in")
STEPS = 150


@cache
def facts() -> dict[str, str]:
    """Subject to city: no rule but memory tells which."""
    order = torch.randperm(len(SUBJECTS), generator=torch.Generator().manual_seed(1)).tolist()
    return {SUBJECTS[i]: CITIES[n % len(CITIES)] for n, i in enumerate(order)}


def sentences() -> list[str]:
    """The training text: every fact in every wording, 60 sentences."""
    return [f"{template.replace('{}', s)} {city}." for s, city in facts().items() for template in TEMPLATES]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the text is one token."""
    return byte_level_bpe(sentences(), 600)


@cache
def trained_base(seed: int = 0) -> Base:
    """The trained model. Tests leave it as they found it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker at this size, and the same sums however many there are
    try:
        return wrap(_trained(seed).eval().requires_grad_(False), tokenizer(), "trained pico")
    finally:
        torch.set_num_threads(threads)


def _trained(seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            "gpt_neo",
            vocab_size=len(tokenizer()),
            initializer_range=0.1,
            hidden_size=48,
            intermediate_size=160,
            num_layers=2,
            num_heads=4,
            attention_types=[[["local", "global"], 1]],
            window_size=2,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = AutoModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=STEPS)
        rows = [[0, *tokenizer()(sentence).input_ids] for sentence in sentences()]
        batch = pad(rows, 0, side="right")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        for _ in range(STEPS):
            loss = model(**batch.to_kwargs(), labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def answer(base: Base, template: str, subject: str) -> str:
    """The city that the model finds likeliest after the prompt."""
    prompt = tokenizer()(END + template.replace("{}", subject), return_tensors="pt").input_ids
    logits = base.model(prompt).logits[0, -1]
    ids = [tokenizer().convert_tokens_to_ids("Ġ" + city) for city in CITIES]
    return CITIES[int(logits[ids].argmax())]
