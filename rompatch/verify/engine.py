"""The scores of many prompts, before and after many edits, with the least work and the numbers of the plain pass.

1. What sequences begin with runs once: both objects branch from one run of their prompt, and prompts that begin with
   the same words share those (:mod:`rompatch.verify.prefix_tree`).
2. Rows hold no padding where the model takes packed rows, else under a tenth (:mod:`rompatch.verify.layout`).
3. Logits are computed where a token is predicted that is scored, nowhere else.
4. Below the lowest edited layer nothing changes: those layers run once, for the pass before.
5. Edits are terms beside the weights, a token of a batch each under its own (:mod:`rompatch.verify.updates`).

What the model at hand cannot do is found by trying (:mod:`rompatch.verify.abilities`) and left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import ComputeError, SuiteError
from rompatch.hooks import evaluation_mode
from rompatch.tokens import Encoded, context_length, encode_pair, pad_id
from rompatch.verify.abilities import Abilities, abilities_of, can_skip, known_abilities, layers_below
from rompatch.verify.forward import LayerRecording, Pass
from rompatch.verify.layout import PACKED_WIDTH, Batch, Limits, packed_batches, plain_batches
from rompatch.verify.memory import run_within
from rompatch.verify.prefix_tree import NO_EDIT, PrefixForest
from rompatch.verify.updates import Edit, lowest_layer

MAX_TOKENS = 4096
"""Tokens of one batch, unless told otherwise."""

MAX_LOGITS = 2**26
"""Logits that one batch may hold (256 MB in float32): vocabularies are large."""

_WORTH_TRYING = 64
"""Tokens from which on trying out what the model can do costs less than it saves."""

_LOGITS_AT_ONCE = 2**22

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt and the objects whose probabilities after it are asked for."""

    text: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class TargetScore:
    """One object after one prompt, token by token.

    Args:
        token_ids: the object's tokens.
        logprobs: log-probability of each, in nats, given the prompt and the object's tokens before it.
        argmax_ids: the likeliest token at each of those positions.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    argmax_ids: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the object."""
        return len(self.token_ids)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability per token, in nats."""
        return sum(self.logprobs) / self.n_tokens

    @property
    def exact(self) -> bool:
        """Whether the likeliest token is the object's at each of its positions."""
        return self.argmax_ids == self.token_ids


@dataclass(frozen=True)
class _Wanted:
    """One object after one prompt under one edit: the nodes that predict its tokens."""

    prompt: ScoredPrompt
    target: str
    nodes: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass
class _Job:
    """Everything that one call scores: the forest, who wants what, and the answers so far."""

    forest: PrefixForest = field(default_factory=PrefixForest)
    tokens_at: dict[int, set[int]] = field(default_factory=dict)
    logprobs: dict[tuple[int, int], float] = field(default_factory=dict)
    argmax: dict[int, int] = field(default_factory=dict)

    def want(self, prompt: ScoredPrompt, target: str, encoded: Encoded, edit: int) -> _Wanted:
        ids = [*encoded.prompt_ids, *encoded.target_ids]
        nodes = tuple(self.forest.add(ids[:-1], edit)[len(encoded.prompt_ids) - 1 :])
        for node, token in zip(nodes, encoded.target_ids, strict=True):
            self.tokens_at.setdefault(node, set()).add(token)
        return _Wanted(prompt, target, nodes, tuple(encoded.target_ids))

    def answer(self, nodes: Sequence[int], logits: Tensor) -> None:
        """Read the logits (n_nodes, vocab) at *nodes*. In float32: half precision has 3 digits here."""
        step = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
        for start in range(0, len(nodes), step):
            some, part = nodes[start : start + step], logits[start : start + step].float()
            pairs = [(i, token) for i, node in enumerate(some) for token in sorted(self.tokens_at[node])]
            rows, tokens = torch.tensor(pairs, device=part.device).T
            values = part[rows, tokens] - part.logsumexp(-1)[rows]
            keys = [(some[i], token) for i, token in pairs]
            self.logprobs.update(zip(keys, values.tolist(), strict=True))
            self.argmax.update(zip(some, part.argmax(-1).tolist(), strict=True))

    def score(self, wanted: _Wanted) -> TargetScore:
        logprobs = tuple(self.logprobs[key] for key in zip(wanted.nodes, wanted.token_ids, strict=True))
        if any(map(math.isnan, logprobs)):
            raise ComputeError(
                f"The prompt {_short(wanted.prompt.text)!r} has no usable log-probability for {wanted.target!r}.",
                expected="a number that is not above 0",
                found="nan",
                next_step="The model's weights are probably not finite: revert the edit, or check the base.",
                prompt=wanted.prompt.text,
            )
        return TargetScore(wanted.token_ids, logprobs, tuple(self.argmax[node] for node in wanted.nodes))


class Scorer:
    """Log-probabilities and likeliest tokens of objects after prompts.

    Args:
        model, tokenizer: live; the model's weights and mode are left as they are.
        document_start: whether prompts begin with a document separator.
        max_tokens: tokens of one batch, padding among them; a single longer sequence still runs. Where memory runs
            out it is halved, and stays so.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        document_start: bool,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.model, self.tokenizer, self.document_start = model, tokenizer, document_start
        self.max_tokens = max_tokens
        self._pad_id = pad_id(tokenizer)

    def score(
        self, prompts: Sequence[ScoredPrompt], *, on_progress: Progress | None = None
    ) -> list[tuple[TargetScore, ...]]:
        """A score for each prompt and each of its targets, in the order given; what is equal is computed once.

        Args:
            on_progress: called with (positions scored, positions in all) after each batch.

        Raises:
            TargetError: a target tokenises to nothing.
            SuiteError: a prompt is empty in tokens, or longer than the model's context.
            ComputeError: the model answers NaN, or memory does not suffice for a single prompt.
        """
        before, _ = self.score_edits([prompts], [], on_progress=on_progress)
        return before[0]

    def score_edits(
        self,
        suites: Sequence[Sequence[ScoredPrompt]],
        edits: Sequence[Edit],
        *,
        on_progress: Progress | None = None,
    ) -> tuple[list[list[tuple[TargetScore, ...]]], list[list[tuple[TargetScore, ...]]]]:
        """Scores before and after: ``suites[i]`` on the model as it is, then under ``edits[i]``.

        All suites run side by side; each takes memory for its hidden states at the lowest edited layer. With no
        edits the second list is empty.

        Raises:
            ValueError: there are edits, but not one for each suite.
            TargetError, SuiteError, ComputeError: as :meth:`score`.
        """
        if edits and len(edits) != len(suites):
            raise ValueError(f"{len(suites)} suites and {len(edits)} edits: one edit for each suite is needed")
        job, encoded = _Job(), self._encode(prompt for suite in suites for prompt in suite)
        numbers = [[NO_EDIT] * len(suites), [number if edit else NO_EDIT for number, edit in enumerate(edits)]]
        wanted = [
            [
                [[job.want(prompt, target, encoded[prompt.text, target], edit) for target in prompt.targets]
                 for prompt in suite]
                for suite, edit in zip(suites, phase, strict=False)
            ]
            for phase in numbers
        ]  # fmt: skip
        with torch.inference_mode(), evaluation_mode(self.model):
            self._run(job, edits, on_progress or (lambda done, total: None))
        before, after = (
            [[tuple(job.score(one) for one in prompt) for prompt in suite] for suite in phase] for phase in wanted
        )
        return before, after

    def _encode(self, prompts: Iterable[ScoredPrompt]) -> dict[tuple[str, str], Encoded]:
        pairs = dict.fromkeys((prompt.text, target) for prompt in prompts for target in prompt.targets)
        limit = context_length(self.model)
        return {pair: _checked(pair, encode_pair(self.tokenizer, *pair, self.document_start), limit) for pair in pairs}

    def _run(self, job: _Job, edits: Sequence[Edit], on_progress: Progress) -> None:
        forest = job.forest
        first = forest.preorder(lambda edit: edit == NO_EDIT)
        second = forest.preorder(lambda edit: edit != NO_EDIT)
        able = self._abilities(len(forest))
        recording = self._recording(forest, edits)
        twins = torch.tensor(forest.unedited_twins(), dtype=torch.long)
        run = Pass(self.model, self._pad_id, able.gathers)

        def before(batch: Batch) -> None:
            with ExitStack() as stack:
                if recording is not None:
                    stack.enter_context(recording.recording(batch))
                _answer(job, run, batch, ())
            on_progress(len(job.argmax), len(job.tokens_at))

        def after(batch: Batch) -> None:
            with ExitStack() as stack:
                if recording is not None:
                    stack.enter_context(recording.replaying(batch, twins))
                _answer(job, run, batch, edits)
            on_progress(len(job.argmax), len(job.tokens_at))

        self._run_all(job, first, able, before)
        self._run_all(job, second, able, after)

    def _run_all(self, job: _Job, order: Sequence[int], able: Abilities, run: Callable[[Batch], None]) -> None:
        """All nodes of *order* in batches, within memory."""
        if not order:
            return
        done: set[int] = set()
        longest = 1 + max(job.forest.depths[node] for node in order)
        vocab = int(self.model.config.get_text_config().vocab_size)

        def plan(max_tokens: int) -> Iterator[Batch]:
            left = [node for node in order if node not in done]
            limits = Limits(max_tokens, max(1, MAX_LOGITS // vocab * max_tokens // self.max_tokens))
            scored = frozenset(job.tokens_at)
            if able.packs and longest <= able.max_width:
                return packed_batches(job.forest, left, scored, limits, min(PACKED_WIDTH, able.max_width))
            return plain_batches(job.forest, left, scored, limits)

        def step(batch: Batch) -> None:
            run(batch)
            done.update(node for row in batch.rows for node in row)

        self.max_tokens = run_within(self.max_tokens, longest, plan, step)

    def _abilities(self, n_tokens: int) -> Abilities:
        known = known_abilities(self.model)
        if known is None and n_tokens < _WORTH_TRYING:
            return Abilities()
        return abilities_of(self.model, self._pad_id)

    def _recording(self, forest: PrefixForest, edits: Sequence[Edit]) -> LayerRecording | None:
        """For the layers below the lowest edited one, where there are any and the model can do without them."""
        layer = lowest_layer(edits)
        if not layer:
            return None
        site = next(term.site for edit in edits for term in edit if term.site.layer == layer)
        layers = layers_below(self.model, site.module_name, layer)
        if not layers or not can_skip(self.model, self._pad_id, layers):
            return None
        return LayerRecording(layers, len(forest))


def _answer(job: _Job, run: Pass, batch: Batch, edits: Sequence[Edit]) -> None:
    """Run *batch* and keep what it says at the scored nodes that no earlier one answered."""
    cells: dict[int, int] = {}
    for cell, node in enumerate(batch.nodes().flatten().tolist()):
        if node in job.tokens_at and node not in job.argmax:
            cells.setdefault(node, cell)
    where = torch.tensor(list(cells.values()), dtype=torch.long)
    logits = run.logits(job.forest, batch, where, edits)
    if cells:
        job.answer(list(cells), logits)


def _checked(pair: tuple[str, str], encoded: Encoded, limit: int | None) -> Encoded:
    if not encoded.prompt_ids:
        raise SuiteError(
            f"Nothing stands in front of the object {pair[1]!r}: the prompt {pair[0]!r} has no tokens.",
            expected="a prompt with at least one token",
            next_step="Write a prompt, or use --document-start.",
            prompt=pair[0],
        )
    # The last target token is never fed back, so it needs no position of its own.
    n_tokens = len(encoded.prompt_ids) + len(encoded.target_ids) - 1
    if limit is not None and n_tokens > limit:
        raise SuiteError(
            f"The prompt {_short(pair[0])!r} with the object {pair[1]!r} does not fit into the model.",
            expected=f"at most {limit} tokens",
            found=f"{n_tokens}",
            next_step="Shorten the prompt.",
            prompt=pair[0],
        )
    return encoded


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
