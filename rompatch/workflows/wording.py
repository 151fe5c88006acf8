"""From a relation phrase to a prompt template: candidates, scored by the model's own likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rompatch.edits import PLACEHOLDER, fill
from rompatch.errors import RequestError, SubjectError

if TYPE_CHECKING:
    from rompatch.models import Base

_VERBS = {"is", "are", "was", "were", "has", "had", "plays", "played", "speaks", "spoke", "works", "worked", "wrote"}
_BEFORE_SUBJECT = "People often talk about"
_PREPOSITIONS = {"in", "at", "by", "for", "from", "of", "on", "to", "with", "as"}
_ROOM = 20
"""Tokens that a context prefix and an answer take beside the prompt; wordings differ by less."""


@dataclass(frozen=True)
class Wording:
    """A template and its score: mean log-likelihood per token of the filled prompt, in nats (None: not scored)."""

    template: str
    log_likelihood: float | None


def candidate_templates(phrase: str) -> tuple[str, ...]:
    """Ways to say ``subject phrase object`` up to the object, the plainest first.

    "located in" gives "{} is located in", "The {} is located in", "{} located in", ...; "capital" gives
    "The capital of {} is" and "{}'s capital is". A phrase with ``{}`` is a template already.
    """
    phrase = " ".join(phrase.split())
    if PLACEHOLDER in phrase:
        return (phrase,)
    words = phrase.split(" ")
    if words[0].casefold() in _VERBS:
        return (f"{{}} {phrase}", f"The {{}} {phrase}")
    candidates = [f"{{}} is {phrase}", f"The {{}} is {phrase}", f"{{}} was {phrase}", f"The {{}} was {phrase}"]
    candidates += [f"{{}} {phrase}", f"The {{}} {phrase}"]
    if words[-1].casefold() not in _PREPOSITIONS:
        noun = phrase.removeprefix("the ").removeprefix("The ")
        candidates += [f"The {noun} of {{}} is", f"The {noun} of the {{}} is", f"{{}}'s {noun} is"]
    elif words[-1].casefold() == "of" and len(words) > 1:
        candidates += [f"The {phrase.removeprefix('the ')} {{}} is", f"The {phrase.removeprefix('the ')} the {{}} is"]
    return tuple(dict.fromkeys(candidates))


def choose_template(base: Base, subject: str, phrase: str, *, document_start: bool) -> tuple[Wording, ...]:
    """The candidates for *phrase*, best first, by the model's own likelihood of the filled prompts.

    Whether the subject takes an article is decided first, in a sentence made for it (:func:`takes_article`): the mean
    over a whole prompt rewards "The Lionel Messi plays", because "The" is a cheap token.

    Raises:
        RequestError: there is no phrase.
        SubjectError: a prompt with the subject in it is longer than the model's context.
    """
    if not phrase.strip():
        raise RequestError("The relation is empty.", next_step='Say how they are related: "located in".')
    candidates = candidate_templates(phrase)
    _check_length(base, fill(candidates[0], subject), document_start)
    if len(candidates) == 1:
        return (Wording(candidates[0], None),)
    article = takes_article(base, subject, document_start=document_start)
    candidates = tuple(one for one in candidates if article == ("the {}" in one.casefold())) or candidates
    scores = [
        total / count
        for total, count in _log_likelihoods(base, [fill(one, subject) for one in candidates], document_start)
    ]
    wordings = [Wording(template, score) for template, score in zip(candidates, scores, strict=True)]
    return tuple(sorted(wordings, key=lambda wording: -(wording.log_likelihood or 0.0)))


def takes_article(base: Base, subject: str, *, document_start: bool) -> bool:
    """Whether the model would rather write "the Eiffel Tower" than "Eiffel Tower" in the middle of a sentence."""
    texts = [f"{_BEFORE_SUBJECT} the {subject}.", f"{_BEFORE_SUBJECT} {subject}."]
    (with_article, _), (without, _) = _log_likelihoods(base, texts, document_start)
    return with_article > without


def _check_length(base: Base, text: str, document_start: bool) -> None:
    from rompatch.tokens import encode_prompt

    length = len(encode_prompt(base.tokenizer, text, document_start)) + _ROOM
    if length > base.context_length:
        raise SubjectError(
            "The prompt with its subject is longer than the model's context.",
            expected=f"at most {base.context_length} tokens, {_ROOM} of them for contexts and an answer",
            found=f"{length} tokens",
            next_step="Shorten the subject or the prompt.",
        )


def _log_likelihoods(base: Base, texts: Sequence[str], document_start: bool) -> list[tuple[float, int]]:
    """Log-likelihood of each text in nats, and over how many tokens."""
    import torch

    from rompatch.tokens import encode_prompt, pad, pad_id

    rows = [encode_prompt(base.tokenizer, text, document_start) for text in texts]
    batch = pad(rows, pad_id(base.tokenizer), side="right", device=base.input_device)
    with torch.inference_mode():
        logits = base.model(**batch.to_kwargs(), use_cache=False).logits.float()
    log_probs = torch.log_softmax(logits[:, :-1], dim=2).gather(2, batch.input_ids[:, 1:, None])[..., 0]
    counted = batch.attention_mask[:, 1:]
    totals = (log_probs * counted).sum(1)
    return [(float(total), int(count)) for total, count in zip(totals, counted.sum(1), strict=True)]
