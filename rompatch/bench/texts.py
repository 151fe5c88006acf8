"""What is measured on text: what the model writes about a subject (GE, RS), and its perplexity there (essence).

As the authors of COUNTERFACT do it: every generation prompt is continued to 100 tokens, prompt included, sampled from
the five likeliest tokens; GE and RS are of prompt and continuation together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rompatch.apply.session import PatchedModel
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.tokens import encode_prompt
from rompatch.verify.consistency import TfIdf
from rompatch.verify.fluency import fluency
from rompatch.verify.generation import generate
from rompatch.verify.perplexity import essence
from rompatch.verify.reading import Record
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.texts import TextFile

WRITTEN_TOKENS = 100
TOP_K = 5

Measures = dict[str, float | None]


@dataclass(frozen=True)
class Written:
    """What was measured on texts, and the texts, before and after an edit."""

    before: Measures
    after: Measures
    texts_before: list[str]
    texts_after: list[str]


class TextMeasurer:
    """Measures records one by one, with the edit in the model's weights; they are restored after each.

    Args:
        generation: let the model write: GE, and RS where there are *references*.
        references: texts about subjects that truly have o*.
        about: texts about the records' subjects, for essence.
    """

    def __init__(
        self,
        base: Base,
        *,
        document_start: bool,
        seed: int,
        generation: bool,
        references: TextFile | None = None,
        about: TextFile | None = None,
    ) -> None:
        self.base, self.document_start, self.seed, self.generation = base, document_start, seed, generation
        self.references, self.about = references, about
        self._tfidf = None if references is None else TfIdf(references.documents())

    def measure(self, record: Record, patch: Patch) -> Written:
        """GE, RS and essence of one record, None where they cannot be measured.

        Raises:
            SuiteError: a prompt does not fit into the model.
            ComputeError: the model answers NaN.
        """
        with PatchedModel(self.base) as patched:
            texts_before, before = self._measured(record)
            patched.activate([patch])
            texts_after, after = self._measured(record)
        return Written(before, after, texts_before, texts_after)

    def _measured(self, record: Record) -> tuple[list[str], Measures]:
        if not isinstance(record, CounterfactRecord):  # others have no prompts for it
            return [], {}
        texts = self._write(record.generation_prompts) if self.generation else []
        found: Measures = {"ge": fluency(texts), "rs": None, "essence": None}
        if self.references is not None and self._tfidf is not None:
            found["rs"] = self._tfidf.consistency(texts, self.references.references(record))
        if self.about is not None:
            about = self.about.about_subject(record)
            found["essence"] = _finite(
                essence(self.base.model, self.base.tokenizer, about, document_start=self.document_start)
            )
        return texts, found

    def _write(self, prompts: Sequence[str]) -> list[str]:
        if not prompts:
            return []
        tokenizer = self.base.tokenizer
        longest = max(len(encode_prompt(tokenizer, prompt, self.document_start)) for prompt in prompts)
        continuations = generate(
            self.base.model,
            tokenizer,
            prompts,
            document_start=self.document_start,
            max_new_tokens=max(1, WRITTEN_TOKENS - longest),
            sample=True,
            top_k=TOP_K,
            seed=self.seed,
        )
        return [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]


def _finite(value: float | None) -> float | None:
    """An infinite perplexity has no mean: not measured."""
    return value if value is None or math.isfinite(value) else None
