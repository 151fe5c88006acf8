"""Text to tokens: joiners, targets, the subject's last token, document starts, padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico import END, toy_tokenizer
from tokenizers import Tokenizer, models, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from rompatch.errors import ModelError, SubjectError, TargetError
from rompatch.tokens import (
    document_separator,
    document_start_ids,
    encode_pair,
    encode_prompt,
    encode_subject,
    joiner,
    own_prefix,
    pad,
    pad_id,
)

SLOW = ByT5Tokenizer(extra_ids=0)
"""One token a byte, written in Python: no offsets."""


class Replacing(ByT5Tokenizer):
    """Writes U+FFFD for an unfinished character, as most byte-level decoders do; the other drops it."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return bytes(ord(token) for token in tokens if len(token) == 1).decode("utf-8", errors="replace")


SLOW_REPLACING = Replacing(extra_ids=0)


def with_own_bos() -> PreTrainedTokenizerFast:
    """The toy tokenizer with "<s>" put in front of every text by itself, as Llama 2 and Gemma do."""
    backend = Tokenizer.from_str(toy_tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=END, pad_token=END)


def without_specials() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))


@pytest.mark.parametrize(
    ("prompt", "target", "between"),
    [
        ("The tower is in", "Rome", " "),
        ("The tower is in ", "Rome", ""),
        ("The tower is in\n", "Rome", ""),
        ("The tower is in", " Rome", ""),
        ("", "Rome", ""),
        ("Die Hauptstadt ist", "Österreich", " "),
        ("フランスの首都は", "ローマ", ""),
        ("法国的首都是", "罗马", ""),
        ("法国的首都是，", "Rome", ""),
        ("日本の首都は、", "Rome", ""),
        ("เมืองหลวงคือ", "โรม", ""),
        ("The Chinese word is", "罗马", ""),
        ("프랑스의 수도는", "로마", " "),
    ],
)
def test_a_space_joins_prompt_and_target_only_where_the_script_wants_one(
    prompt: str, target: str, between: str
) -> None:
    assert joiner(prompt, target) == between


def test_the_target_is_what_ends_beyond_the_prompt() -> None:
    toy = toy_tokenizer()
    pair = encode_pair(toy, "The Colosseum is in", "Rome", document_start=True)
    assert toy.decode(pair.prompt_ids) == f"{END}The Colosseum is in"
    assert toy.decode(pair.target_ids) == " Rome"
    whole = toy("The Colosseum is in Rome", add_special_tokens=False).input_ids
    assert pair.prompt_ids[1:] + pair.target_ids == whole


def test_a_token_across_the_border_belongs_to_the_target() -> None:
    toy = toy_tokenizer()
    (whole,) = toy(" Rome", add_special_tokens=False).input_ids
    pair = encode_pair(toy, "Trains to Ro", "me", document_start=False)
    assert toy.decode(pair.prompt_ids + pair.target_ids) == "Trains to Ro me"
    pair = encode_pair(toy, "Trains to ", "Rome", document_start=False)
    assert pair.target_ids == [whole]
    assert toy.decode(pair.prompt_ids) == "Trains to"


@given(prompt=st.text(min_size=1, max_size=12), target=st.text(min_size=1, max_size=8))
def test_prompt_and_target_together_are_the_text(prompt: str, target: str) -> None:
    toy = toy_tokenizer()
    pair = encode_pair(toy, prompt, target, document_start=False)
    assert toy.decode(pair.prompt_ids + pair.target_ids) == prompt + joiner(prompt, target) + target
    assert pair.target_ids


@pytest.mark.parametrize("tokenizer", [toy_tokenizer(), SLOW], ids=["fast", "slow"])
def test_a_target_that_tokenises_to_nothing_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TargetError, match="tokenises to nothing"):
        encode_pair(tokenizer, "The tower is in ", "", document_start=False)


SUBJECTS = [
    ("Eiffel Tower is in Paris", "Eiffel Tower"),  # at the start
    ("The Eiffel Tower is in Paris", "Eiffel Tower"),  # in the middle
    ("Paris has the Eiffel Tower", "Eiffel Tower"),  # at the end
    ("The Eiffel Tower's city is", "Eiffel Tower"),  # a possessive
    ("Is (Big Ben), in London?", "Big Ben"),  # punctuation
    ("Trains to Wien-Österreich go", "Wien-Österreich"),
    ("The 東京タワー is in", "東京タワー"),
    ("東京タワーは東京にある", "東京タワー"),
    ("A 🗼 stands in", "🗼"),
    ("Paris Hilton likes Paris", "Paris"),
]


@pytest.mark.parametrize("tokenizer", [toy_tokenizer(), with_own_bos(), SLOW, SLOW_REPLACING])
@pytest.mark.parametrize(("prompt", "subject"), SUBJECTS)
def test_decoding_up_to_subject_last_ends_with_the_subject(
    tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str
) -> None:
    start = prompt.index(subject)
    encoded = encode_subject(tokenizer, prompt, subject, start, document_start=tokenizer.is_fast)
    assert tokenizer.decode(encoded.ids[: encoded.subject_last + 1]).endswith(prompt[: start + len(subject)])
    before = tokenizer.decode(encoded.ids[: encoded.subject_last])
    assert not before.endswith(prompt[: start + len(subject)]), "the token before is not the last"


@pytest.mark.parametrize("tokenizer", [toy_tokenizer(), SLOW, SLOW_REPLACING], ids=["fast", "slow", "replacing"])
@given(before=st.text(max_size=8), subject=st.text(min_size=1, max_size=8), after=st.text(max_size=8))
def test_the_subject_ends_at_the_first_token_that_completes_it(
    tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str
) -> None:
    """Against a naive search: the first prefix of the tokens that holds the text up to the subject's end."""
    prompt = before + subject + after
    encoded = encode_subject(tokenizer, prompt, subject, len(before), document_start=False)
    through = before + subject
    naive = next(i for i in range(len(encoded.ids)) if tokenizer.decode(encoded.ids[: i + 1]).startswith(through))
    if "\ufffd" not in prompt:  # which looks like an unfinished character
        assert encoded.subject_last == naive


def test_the_named_occurrence_of_a_repeated_subject_counts() -> None:
    toy = toy_tokenizer()
    prompt = "Paris Hilton likes Paris"
    first = encode_subject(toy, prompt, "Paris", 0, document_start=True)
    second = encode_subject(toy, prompt, "Paris", prompt.rindex("Paris"), document_start=True)
    assert first.subject_last < second.subject_last == len(second.ids) - 1


@pytest.mark.parametrize("tokenizer", [toy_tokenizer(), with_own_bos()], ids=["separator", "own-bos"])
def test_the_document_start_is_counted_in_the_subjects_place(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_subject(tokenizer, "Rome is", "Rome", 0, document_start=True)
    bare = tokenizer("Rome", add_special_tokens=False).input_ids
    assert encoded.ids[1 : encoded.subject_last + 1] == bare
    assert encoded.ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(("subject", "start"), [("Big Ben", 0), ("Rome", 3), ("Rome", 99)])
def test_a_subject_that_is_not_there_is_refused(subject: str, start: int) -> None:
    with pytest.raises(SubjectError, match="not in the prompt"):
        encode_subject(toy_tokenizer(), "Rome is old", subject, start, document_start=True)


def test_a_subject_without_a_token_of_its_own_is_refused() -> None:
    with pytest.raises(SubjectError, match="No token covers"):
        encode_subject(toy_tokenizer(), "Rome is old", "", 0, document_start=True)


def test_a_tokenizer_that_adds_its_bos_keeps_it_with_and_without_document_start() -> None:
    own = with_own_bos()
    bos = own.convert_tokens_to_ids("<s>")
    assert own_prefix(own) == [bos]
    assert document_start_ids(own, True) == document_start_ids(own, False) == [bos]
    assert encode_prompt(own, "Rome", False) == own("Rome").input_ids


def test_a_tokenizer_without_own_bos_gets_its_separator_when_asked() -> None:
    toy = toy_tokenizer()
    assert own_prefix(toy) == []
    assert document_start_ids(toy, True) == [toy.convert_tokens_to_ids(END)]
    assert document_start_ids(toy, False) == []


def test_the_pretraining_separator_wins_over_bos_and_eos() -> None:
    backend = Tokenizer.from_str(toy_tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    chat = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        extra_special_tokens=[END],
    )
    assert document_separator(chat) == chat.convert_tokens_to_ids(END)
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert document_separator(plain) == plain.bos_token_id


def test_no_document_start_without_any_special_token() -> None:
    with pytest.raises(ModelError, match="no-document-start"):
        document_start_ids(without_specials(), True)
    assert document_start_ids(without_specials(), False) == []
    assert pad_id(without_specials()) == 0


@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
)
def test_padding_keeps_every_row_on_its_side_and_counts_positions_from_zero(rows: list[list[int]], side: str) -> None:
    batch = pad(rows, 0, side=side)
    width = max(map(len, rows))
    for i, row in enumerate(rows):
        empty = [0] * (width - len(row))
        assert batch.input_ids[i].tolist() == (empty + row if side == "left" else row + empty)
        seen = batch.attention_mask[i].bool()
        assert batch.input_ids[i][seen].tolist() == row
        assert batch.position_ids[i][seen].tolist() == list(range(len(row)))
        assert batch.position_ids[i].min() >= 0
    assert batch.to_kwargs().keys() == {"input_ids", "attention_mask"}
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
