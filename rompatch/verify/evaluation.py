"""A suite scored on a model, and two such evaluations compared prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import SuiteError
from rompatch.verify.engine import MAX_TOKENS, ScoredPrompt, Scorer, TargetScore
from rompatch.verify.metrics import Pair, Scores, score_pairs
from rompatch.verify.suite import Prompt, Suite
from rompatch.verify.updates import Edit

_TOKENS = ("new_ids", "new_argmax", "true_ids", "true_argmax")


@dataclass(frozen=True)
class PromptResult:
    """What the model makes of one prompt.

    Args:
        prompt: the prompt, with both objects.
        new_logprob, true_logprob: mean log-probability per token, in nats; ``true_logprob`` is None
            without true object.
        new_exact, true_exact: whether greedy decoding would write that object.
        new_ids, true_ids: the tokens of that object; empty in evaluations stored before they were kept.
        new_argmax, true_argmax: the likeliest token at each of them, given the prompt and the object's tokens before.
    """

    prompt: Prompt
    new_logprob: float
    new_exact: bool
    true_logprob: float | None
    true_exact: bool | None
    new_ids: tuple[int, ...] = ()
    new_argmax: tuple[int, ...] = ()
    true_ids: tuple[int, ...] = ()
    true_argmax: tuple[int, ...] = ()

    @property
    def margin(self) -> float | None:
        """Nats by which the wanted object leads (negative: fails); the true one for neighbours, else the new one."""
        if self.true_logprob is None:
            return None
        lead = self.new_logprob - self.true_logprob
        return -lead if self.prompt.kind == "neighbourhood" else lead

    @property
    def passed(self) -> bool | None:
        """Whether the wanted object is the more probable; None without true object."""
        return None if self.margin is None else self.margin > 0

    def to_json(self) -> dict[str, Any]:
        """The prompt's fields, the numbers, ``margin`` and ``passed``, in one flat object."""
        return {
            **self.prompt.to_json(),
            "new_logprob": self.new_logprob,
            "new_exact": self.new_exact,
            "true_logprob": self.true_logprob,
            "true_exact": self.true_exact,
            **{name: list(getattr(self, name)) for name in _TOKENS},
            "margin": self.margin,
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PromptResult:
        """The inverse of :meth:`to_json`."""
        prompt = Prompt(data["kind"], data["text"], data["target_new"], data["target_true"])
        tokens = {name: tuple(data.get(name, ())) for name in _TOKENS}
        return cls(prompt, data["new_logprob"], data["new_exact"], data["true_logprob"], data["true_exact"], **tokens)


@dataclass(frozen=True)
class Evaluation:
    """A suite scored on one model: a result for each prompt that can be scored (all but generation), and Scores.

    JSON form, as :meth:`to_json` writes it:
    ``{"name", "source", "untested": [...], "document_start", "scores": {...}, "results": [{...}, ...]}``.
    """

    name: str
    source: str
    untested: tuple[str, ...]
    document_start: bool
    results: tuple[PromptResult, ...]
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """See the class; ``scores`` as in :meth:`Scores.to_json`, ``results`` as in :meth:`PromptResult.to_json`."""
        return {
            "name": self.name,
            "source": self.source,
            "untested": list(self.untested),
            "document_start": self.document_start,
            "scores": self.scores.to_json(),
            "results": [result.to_json() for result in self.results],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of :meth:`to_json`.

        Raises:
            SuiteError: a field is missing or of the wrong kind.
        """
        try:
            return cls(
                name=data["name"],
                source=data["source"],
                untested=tuple(data["untested"]),
                document_start=bool(data["document_start"]),
                results=tuple(PromptResult.from_json(result) for result in data["results"]),
                scores=Scores.from_json(data["scores"]),
            )
        except (KeyError, TypeError) as problem:
            raise SuiteError("The stored evaluation cannot be read.", found=repr(problem)) from problem


@dataclass(frozen=True)
class PromptChange:
    """One prompt before and after an edit."""

    before: PromptResult
    after: PromptResult

    @property
    def prompt(self) -> Prompt:
        """The prompt that both are about."""
        return self.after.prompt

    def to_json(self) -> dict[str, Any]:
        """``{"before": {...}, "after": {...}}``, each as in :meth:`PromptResult.to_json`."""
        return {"before": self.before.to_json(), "after": self.after.to_json()}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    *,
    document_start: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every prompt of *suite* except its generation prompts.

    Raises:
        TargetError, SuiteError, ComputeError: from :meth:`~rompatch.verify.engine.Scorer.score`.
    """
    prompts = _scored(suite)
    scorer = Scorer(model, tokenizer, document_start=document_start)
    scores = scorer.score([_asked(prompt) for prompt in prompts], on_progress=on_progress)
    return _evaluation(suite, prompts, scores, document_start)


def evaluate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: Sequence[Suite],
    edits: Sequence[Edit],
    *,
    document_start: bool,
    max_tokens: int = MAX_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Evaluation, Evaluation]]:
    """Score ``suites[i]`` before and after ``edits[i]``, all side by side; the model's weights are not touched.

    The numbers are those of :func:`evaluate` on the model and on a model with the edit in its weights. One suite that
    cannot be scored fails them all: score the suites one by one then.

    Raises:
        ValueError: there is not one edit for each suite.
        TargetError, SuiteError, ComputeError: from :meth:`~rompatch.verify.engine.Scorer.score_edits`.
    """
    if len(edits) != len(suites):
        raise ValueError(f"{len(suites)} suites and {len(edits)} edits: one edit for each suite is needed")
    prompts = [_scored(suite) for suite in suites]
    scorer = Scorer(model, tokenizer, document_start=document_start, max_tokens=max_tokens)
    asked = [[_asked(prompt) for prompt in some] for some in prompts]
    before, after = scorer.score_edits(asked, edits, on_progress=on_progress)
    return [
        (_evaluation(suite, some, old, document_start), _evaluation(suite, some, new, document_start))
        for suite, some, old, new in zip(suites, prompts, before, after, strict=True)
    ]


def scores_of(results: Sequence[PromptResult]) -> Scores:
    """Scores of results that have a true object.

    Raises:
        ComputeError: one of them is NaN.
    """

    def pairs(kind: str) -> list[Pair]:
        return [
            (r.new_logprob, r.true_logprob) for r in results if r.prompt.kind == kind and r.true_logprob is not None
        ]

    return score_pairs(pairs("rewrite"), pairs("paraphrase"), pairs("neighbourhood"), pairs("attribute"))


def compare(before: Evaluation, after: Evaluation) -> tuple[PromptChange, ...]:
    """Prompts before and after, worst first: by how far the wanted object trails after the edit.

    Prompts without a true object cannot be judged and are left out.

    Raises:
        SuiteError: the two evaluations are not of the same prompts.
    """
    old = {result.prompt: result for result in before.results}
    new = {result.prompt: result for result in after.results}
    if old.keys() != new.keys() or before.document_start != after.document_start:
        raise SuiteError(
            "The two evaluations are not of the same suite.",
            expected=f"{before.name} ({len(old)} prompts, document start {before.document_start})",
            found=f"{after.name} ({len(new)} prompts, document start {after.document_start})",
            next_step="Verify both with the same suite.",
        )
    changes = [PromptChange(old[prompt], result) for prompt, result in new.items() if result.margin is not None]
    return tuple(sorted(changes, key=lambda change: change.after.margin or 0.0))


def _scored(suite: Suite) -> list[Prompt]:
    return [prompt for prompt in suite.prompts if prompt.kind != "generation"]


def _asked(prompt: Prompt) -> ScoredPrompt:
    true = () if prompt.target_true is None else (prompt.target_true,)
    return ScoredPrompt(prompt.text, (prompt.target_new, *true))


def _evaluation(
    suite: Suite, prompts: Sequence[Prompt], scores: Sequence[tuple[TargetScore, ...]], document_start: bool
) -> Evaluation:
    results = tuple(_result(prompt, *found) for prompt, found in zip(prompts, scores, strict=True))
    return Evaluation(suite.name, suite.source, suite.untested, document_start, results, scores_of(results))


def _result(prompt: Prompt, new: TargetScore, true: TargetScore | None = None) -> PromptResult:
    return PromptResult(
        prompt=prompt,
        new_logprob=new.mean_logprob,
        new_exact=new.exact,
        true_logprob=true.mean_logprob if true else None,
        true_exact=true.exact if true else None,
        new_ids=new.token_ids,
        new_argmax=new.argmax_ids,
        true_ids=true.token_ids if true else (),
        true_argmax=true.argmax_ids if true else (),
    )
