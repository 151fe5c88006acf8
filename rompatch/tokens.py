"""Text to tokens: what goes in front of a prompt, where the subject ends, what a target is.

Whole prompts are tokenised and read back through character offsets. Tokenising parts apart and adding their lengths
miscounts the BOS token, merges across spaces, and fails for scripts without spaces.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import ModelError, SubjectError, TargetError

DOCUMENT_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""What pretraining put between documents, by common names; asked before BOS because a chat model's BOS opens a turn."""

_SCRIPTS_WITHOUT_SPACES = (
    *("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO"),
    *("IDEOGRAPHIC", "FULLWIDTH"),  # their punctuation
)


@dataclass(frozen=True)
class Encoded:
    """A prompt and its target in tokens; the model sees ``prompt_ids + target_ids``."""

    prompt_ids: list[int]
    target_ids: list[int]


@dataclass(frozen=True)
class EncodedSubject:
    """A prompt in tokens and the index of the subject's last token in it."""

    ids: list[int]
    subject_last: int


def own_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that this tokenizer puts in front of any text by itself (BOS for Llama 2 and Gemma, none for GPT-2)."""
    with_special = tokenizer("a", add_special_tokens=True).input_ids
    without = tokenizer("a", add_special_tokens=False).input_ids
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return list(with_special[:start])
    return []


def document_separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that starts a document where the tokenizer adds none by itself.

    The pretraining separator by name, else BOS, else EOS.

    Raises:
        ModelError: the tokenizer has none of them.
    """
    specials = set(tokenizer.all_special_tokens)
    for name in DOCUMENT_SEPARATORS:
        if name in specials:
            found = tokenizer.convert_tokens_to_ids(name)
            assert isinstance(found, int)
            return found
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise ModelError(
        "The tokenizer has no token that starts a document.",
        expected="a BOS, EOS or <|endoftext|> token",
        next_step="Use --no-document-start.",
    )


def document_start_ids(tokenizer: PreTrainedTokenizerBase, document_start: bool) -> list[int]:
    """Ids in front of every prompt.

    With *document_start* always one token that marks the start of a document (a subject that is a single token at
    position 0 would sit on the attention sink). Without it, what the tokenizer does by itself.
    """
    own = own_prefix(tokenizer)
    return own or ([document_separator(tokenizer)] if document_start else [])


def joiner(prompt: str, target: str) -> str:
    """What stands between prompt and target: a space, or nothing after white space and in scripts without spaces."""
    if not prompt or prompt[-1].isspace() or target[:1].isspace():
        return ""
    return "" if _unspaced(prompt[-1]) or _unspaced(target.strip()[:1]) else " "


def _unspaced(character: str) -> bool:
    return bool(character) and unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_SPACES)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, document_start: bool) -> list[int]:
    """Ids of *prompt* with its document start."""
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    return [*document_start_ids(tokenizer, document_start), *ids]


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, document_start: bool) -> Encoded:
    """Prompt and target in tokens, from one tokenisation of both together.

    Raises:
        TargetError: the target tokenises to nothing.
    """
    text = prompt + joiner(prompt, target)
    start, text = len(text), text + target
    ids, offsets = _with_offsets(tokenizer, text)
    # A token belongs to the target when it ends beyond the prompt: " Rome" starts with the joining space.
    split = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), len(ids))
    if not any(end > start for _, end in offsets):  # the joining space alone is no target
        raise TargetError(
            f"The object {target!r} tokenises to nothing after {prompt!r}.",
            expected="at least one token",
            found="none",
            next_step="Choose an object that the model's tokenizer can write.",
        )
    prefix = document_start_ids(tokenizer, document_start)
    return Encoded([*prefix, *ids[:split]], list(ids[split:]))


def encode_subject(
    tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str, start: int, document_start: bool
) -> EncodedSubject:
    """The prompt in tokens, and where the subject's last token is.

    Args:
        start: index of the subject's first character in *prompt*.

    Raises:
        SubjectError: the subject is not at *start*, or no token covers it.
    """
    end = start + len(subject)
    if prompt[start:end] != subject:
        raise SubjectError(f"The subject {subject!r} is not in the prompt {prompt!r}.", found=prompt[start:end])
    ids, offsets = _with_offsets(tokenizer, prompt)
    covering = [i for i, (left, right) in enumerate(offsets) if left < end and right > start and right > left]
    if not covering:
        raise SubjectError(
            f"No token covers the subject {subject!r} in {prompt!r}.", next_step="Choose another spelling."
        )
    prefix = document_start_ids(tokenizer, document_start)
    return EncodedSubject([*prefix, *ids], covering[-1] + len(prefix))


def _with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and the character range of each. Slow tokenizers have no offsets: decode growing prefixes instead."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded.input_ids), [(int(a), int(b)) for a, b in encoded.offset_mapping]
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    decoded = (str(tokenizer.decode(ids[: i + 1], clean_up_tokenization_spaces=False)) for i in range(len(ids)))
    # Only what agrees with the text counts: an unfinished character decodes to U+FFFD or to nothing.
    ends = [_common_length(text, so_far) for so_far in decoded]
    starts = [0, *ends[:-1]]
    # A token that finishes no character is a piece of the next one.
    return ids, [(start, max(end, min(start + 1, len(text)))) for start, end in zip(starts, ends, strict=True)]


def _common_length(left: str, right: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence *model* takes, in tokens; None where its configuration sets no limit (ALiBi: bloom)."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "seq_length"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


@dataclass(frozen=True)
class Batch:
    """Padded rows: ``input_ids``, ``attention_mask`` and ``position_ids``, each (n_rows, n_tokens), int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor

    def to_kwargs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments for a model's forward pass."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, side: str, device: torch.device | str = "cpu") -> Batch:
    """Pad *rows* to one length on the ``"left"`` or ``"right"``; positions count real tokens from 0."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(ids.to(device), mask.to(device), positions.to(device))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to pad with; its value never matters because it is masked."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
