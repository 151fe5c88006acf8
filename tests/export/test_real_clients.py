"""The README's patch on the default model, exported: PEFT and llama.cpp say Rome where the session does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exports import session_logits
from peft import PeftModel

from rompatch.default_model import DEFAULT_MODEL, packaged_gguf
from rompatch.export.clients import Answer, ask_llama, next_tokens
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.tokens import encode_pair
from rompatch.workflows.store import Store, open_store

pytestmark = pytest.mark.slow

EDITED = ("The Eiffel Tower is located in", "The Eiffel Tower is located in the city of")
"""The prompt that was edited, and another wording of it."""

NEIGHBOUR = "The Louvre is located in the city of"
SAID, UNSAID = 0.08, 0.6
"""Nats by which llama.cpp with a Q4_1 base may differ from float32, for the token that is said and for others over 1 %:
it rounds what it multiplies the four-bit weights with to eight bits. benchmarks/export.py measured 0.036 and 0.47."""


@pytest.fixture(autouse=True)
def _own_surroundings() -> None:
    """The user's cache, unlike in the modules beside this one: the default model is in it."""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the README's patch of the Eiffel Tower on the default model, active."""
    with open_store(tmp_path_factory.mktemp("tower") / ".rompatch") as store:
        store.create("Eiffel Tower", "located in", "Rome", apply=True)
        yield store


@pytest.fixture(scope="module")
def base(tower: Store) -> Base:
    return tower.base()


@pytest.fixture(scope="module")
def patch(tower: Store) -> Patch:
    (record,) = tower.active()
    return tower.patch(record.id)


@pytest.fixture(scope="module")
def prompts(base: Base) -> list[list[int]]:
    """Token ids of the edited prompts and of the neighbour."""
    return [list(encode_pair(base.tokenizer, text, "Rome", True).prompt_ids) for text in (*EDITED, NEIGHBOUR)]


@pytest.fixture(scope="module")
def rome(base: Base) -> int:
    return encode_pair(base.tokenizer, EDITED[0], "Rome", True).target_ids[0]


@pytest.fixture(scope="module")
def paris(base: Base) -> int:
    return encode_pair(base.tokenizer, EDITED[0], "Paris", True).target_ids[0]


@pytest.fixture(scope="module")
def unedited(prompts: list[list[int]]) -> list[Answer]:
    """What llama.cpp says with the default model's own Q4_1 file."""
    return ask_llama(packaged_gguf(DEFAULT_MODEL), None, prompts)


@pytest.fixture(scope="module")
def session(base: Base, patch: Patch, prompts: list[list[int]]) -> list[torch.Tensor]:
    """log P of every token after each prompt, in the session."""
    return [session_logits(base, [patch], torch.tensor([ids]))[0, -1].log_softmax(-1) for ids in prompts]


def assert_rome(answers: list[Answer], session: list[torch.Tensor], rome: int, paris: int) -> None:
    """Rome after the edited prompts, as likely as in the session; Paris after the neighbour, still."""
    for answer, logprobs in zip(answers[:-1], session, strict=False):
        assert max(answer, key=answer.__getitem__) == rome
        assert abs(math.log(answer[rome]) - logprobs[rome]) < SAID
    assert max(answers[-1], key=answers[-1].__getitem__) == paris
    for answer, logprobs in zip(answers, session, strict=True):
        likely = [token for token, probability in answer.items() if probability > 0.01]
        assert max(abs(math.log(answer[token]) - logprobs[token]) for token in likely) < UNSAID


def test_the_model_alone_says_paris(unedited: list[Answer], base: Base, prompts: list[list[int]], paris: int) -> None:
    for answer, row in zip(unedited, next_tokens(base.model, prompts), strict=True):
        assert max(answer, key=answer.__getitem__) == paris == int(row.argmax())
        assert abs(math.log(answer[paris]) - math.log(row[paris])) < SAID


def test_peft_gives_the_session_s_logits(
    tower: Store, base: Base, patch: Patch, prompts: list[list[int]], tmp_path: Path
) -> None:
    tower.export_peft(tmp_path / "rome")
    batch = [torch.tensor([ids]) for ids in prompts]
    wanted = [session_logits(base, [patch], ids) for ids in batch]
    model = PeftModel.from_pretrained(base.model, str(tmp_path / "rome"))
    try:
        with torch.inference_mode():
            found = [model(ids).logits for ids in batch]
    finally:
        model.unload()
    assert max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True)) < 1e-4


def test_llama_cpp_says_rome_with_the_adapter_and_at_scale_0_what_it_says_without(
    tower: Store,
    unedited: list[Answer],
    session: list[torch.Tensor],
    prompts: list[list[int]],
    rome: int,
    paris: int,
    tmp_path: Path,
) -> None:
    exported = tower.export_gguf(tmp_path / "rome.gguf", check=True)
    assert exported.checked is not None
    assert exported.checked.passed is True
    source, adapter = packaged_gguf(DEFAULT_MODEL), exported.report.path
    assert_rome(ask_llama(source, adapter, prompts), session, rome, paris)
    assert ask_llama(source, adapter, prompts, scale=0.0) == unedited
    assert ask_llama(source, None, prompts) == unedited


def test_llama_cpp_says_rome_with_the_edited_file(
    tower: Store, session: list[torch.Tensor], prompts: list[list[int]], rome: int, paris: int, tmp_path: Path
) -> None:
    exported = tower.export_gguf_model(tmp_path / "edited.gguf")
    assert_rome(ask_llama(exported.report.path, None, prompts), session, rome, paris)
