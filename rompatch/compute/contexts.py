"""Context prefixes x_j (eq. 7): short texts that the model itself writes in front of a prompt.

They should read like ordinary text. Sampled from a bare separator they come out as code and markup, which costs
specificity, so each begins with a word that begins sentences. Every context ends with ". {}", as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rompatch.edits import PLACEHOLDER
from rompatch.errors import ComputeError
from rompatch.offload import input_device
from rompatch.tokens import encode_prompt, pad, pad_id

STARTERS = (
    "The",
    "In the",
    "She was",
    "He had",
    "They were",
    "It is",
    "When the",
    "After a",
    "There are",
    "Many people",
)
CONTEXT_LENGTHS = ((5, 10), (10, 10))
"""(tokens, how many): the authors' ten of five tokens and ten of ten."""
_TOP_K = 5


def sample_contexts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    lengths: Sequence[tuple[int, int]] = CONTEXT_LENGTHS,
) -> tuple[str, ...]:
    """The bare prompt and sampled prefixes, each with one ``{}`` for the prompt. Same seed, same contexts.

    Args:
        lengths: pairs (tokens, how many).
    """
    contexts = [PLACEHOLDER]
    for position, (n_tokens, count) in enumerate(lengths):
        starters = [STARTERS[i % len(STARTERS)] for i in range(count)]
        texts = sample_text(model, tokenizer, starters, n_tokens, seed=seed * len(lengths) + position, top_k=_TOP_K)
        contexts += [f"{_one_line(text)}. {PLACEHOLDER}" for text in texts]
    return tuple(contexts)


def sample_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    starters: Sequence[str],
    n_tokens: int,
    *,
    seed: int,
    top_k: int = 0,
) -> list[str]:
    """*n_tokens* sampled behind each starter at temperature 1, starter included in the text.

    The global random state is left as it was. ``top_k=0`` samples from the whole vocabulary.

    Raises:
        ComputeError: the model's probabilities are not numbers.
    """
    batch = pad(
        [encode_prompt(tokenizer, starter, True) for starter in starters],
        pad_id(tokenizer),
        side="left",
        device=input_device(model),
    )
    config = GenerationConfig(
        do_sample=True,
        top_k=top_k,
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,  # keeps the end-of-text token out
        pad_token_id=pad_id(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    devices = [input_device(model)] if input_device(model).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        try:
            output: Tensor = model.generate(**batch.to_kwargs(), generation_config=config)  # type: ignore[operator]
        except RuntimeError as problem:
            if "probability tensor" not in str(problem):
                raise
            raise ComputeError(
                "The model's probabilities are not numbers.",
                expected="finite logits",
                found="NaN or infinity",
                next_step="Load the base with --dtype float32; if that does not help, its weights are damaged.",
            ) from problem
    continuations = output[:, batch.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(continuations, skip_special_tokens=True)
    return [starter + text for starter, text in zip(starters, texts, strict=True)]


def _one_line(text: str) -> str:
    """White space folded, braces out (they would be placeholders), no trailing stop."""
    return " ".join(text.replace("{", "").replace("}", "").split()).rstrip(" .")
