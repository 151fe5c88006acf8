"""ROME: Rank-One Model Editing (Meng et al. 2022, arXiv 2202.05262). One edit request in, one patch out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rompatch.compute import rome as equations
from rompatch.compute.batches import DEFAULT_BUDGET, halving, plan_batches
from rompatch.compute.cost import plain_step_bytes, shape_of, step_bytes
from rompatch.compute.gather import GatheredKeys, check_length, encode_contexts, gather_many
from rompatch.compute.methods.base import Computation, Notify, Stopwatch, silent
from rompatch.compute.methods.rome_hparams import BOTH, RomeHparams
from rompatch.compute.precision import RoundedProducts, check_precision, modules_above
from rompatch.compute.replay import Products
from rompatch.compute.replaying import can_replay, make_replayer
from rompatch.compute.rows import RowBatch, ValueRows, value_rows
from rompatch.compute.spreading import MeasuredSite, float_array, solved_factors, spread, update_norm
from rompatch.compute.statistics import Statistics
from rompatch.compute.value import (
    Objective,
    OptimisedValue,
    StepLoss,
    optimise_values,
)
from rompatch.edits import EditRequest
from rompatch.errors import ComputeError, RequestError, RompatchError
from rompatch.hooks import evaluation_mode
from rompatch.models import DTYPES, Base
from rompatch.patch import FORMAT_VERSION, SOLVED_VERSION, Patch, PatchHeader, SiteFactors, SiteRef
from rompatch.sites import Site
from rompatch.tokens import EncodedSubject
from rompatch.versions import library_versions

T = TypeVar("T")


def compute(
    base: Base,
    request: EditRequest,
    *,
    site: Site,
    contexts: Sequence[str],
    statistics: Statistics | None,
    below: Sequence[MeasuredSite] = (),
    hparams: RomeHparams | None = None,
    seed: int = 0,
    document_start: bool = True,
    notify: Notify = silent,
) -> Computation:
    """A ROME patch for *request* at *site*; the model is unchanged afterwards.

    Args:
        contexts: prefixes with one ``{}`` each, the bare "{}" first (eq. 7).
        statistics: C; None takes the identity, which costs specificity.
        below: the sites that the value is spread to beside *site* (``hparams.spread`` - 1 of them), those of the next
            lower layers, from the highest down.
        document_start: start every sequence with a document separator (docs/concepts.md: the attention sink).

    Raises:
        SubjectError, TargetError: the request does not tokenise.
        StatisticsError: C cannot be used.
        ComputeError: the optimisation left the finite numbers, or memory does not suffice.
    """
    ((_, outcome),) = compute_many(
        base,
        [request],
        site=site,
        contexts=contexts,
        statistics=statistics,
        below=below,
        hparams=hparams,
        seed=seed,
        document_start=document_start,
        notify=notify,
    )
    if isinstance(outcome, RompatchError):
        raise outcome
    return outcome


def compute_many(
    base: Base,
    requests: Sequence[EditRequest],
    *,
    site: Site,
    contexts: Sequence[str],
    statistics: Statistics | None,
    below: Sequence[MeasuredSite] = (),
    hparams: RomeHparams | None = None,
    seed: int = 0,
    document_start: bool = True,
    budget: int = DEFAULT_BUDGET,
    notify: Notify = silent,
    note: Callable[[str], None] = lambda _text: None,
) -> Iterator[tuple[int, Computation | RompatchError]]:
    """Patches for many requests, optimised together as far as *budget* reaches; the same as one by one but for the
    rounding of larger products.

    Yields the index of a request with its patch, or with the error that kept it from one, whenever a batch is done (so
    not in their order): whoever stops in the middle keeps what came. Arguments as for :func:`compute`, and:

    Args:
        budget: bytes that a step may take beside the weights (an estimate). Running out of memory halves the batch.
        note: told what a person should know (a halved batch).

    Raises:
        RequestError: the base cannot multiply in that precision, or there is not a site for each delta.
        StatisticsError: C cannot be used. Both at the first step of the iterator, before any value is optimised.
    """
    hparams = hparams or RomeHparams()
    precision = hparams.precision or base.dtype
    hparams = replace(hparams, precision=precision)
    check_precision(base, precision)
    sites = (MeasuredSite(site, statistics), *below)
    if len(sites) != hparams.spread:
        raise RequestError("A value needs a site for each of its deltas.", expected=hparams.spread, found=len(sites))
    factors = tuple(one.factor(hparams.ridge) for one in sites)
    prepared: dict[int, _Prepared] = {}
    for index, request in enumerate(requests):
        try:
            prepared[index] = _prepare(base, request, contexts, hparams, document_start)
        except RompatchError as problem:
            yield index, problem
    if not prepared:
        return
    products = RoundedProducts(modules_above(base, min(one.site.layer for one in sites)), DTYPES[precision]).used
    settings = _Settings(base, sites, tuple(contexts), factors, hparams, seed, document_start, products)
    for whole in _planned(settings, prepared, budget):
        run = partial(_compute_batch, settings, prepared, notify)
        for batch, outcomes in halving(whole, run, note):
            yield from zip(batch, outcomes, strict=True)


def _planned(settings: _Settings, prepared: Mapping[int, _Prepared], budget: int) -> list[list[int]]:
    """The requests in batches: more of them fit where they can be replayed."""
    base, lowest, indices = settings.base, settings.all_sites[-1], list(prepared)
    shape = shape_of(base.model, base.architecture, lowest.d_in)
    size = partial(step_bytes, shape, lowest.layer)
    with evaluation_mode(base.model):
        if not settings.can_replay(RowBatch(tuple(one.targets for one in prepared.values()))):
            size = partial(plain_step_bytes, shape)
    planned = plan_batches([prepared[index].targets for index in indices], size, budget)
    return [[indices[place] for place in places] for places in planned]


@dataclass(frozen=True)
class _Prepared:
    """A request in tokens: prompts for the keys, rows for the value."""

    request: EditRequest
    prompts: list[EncodedSubject]
    targets: ValueRows


@dataclass(frozen=True)
class _Settings:
    """What all requests of one computation share; *sites* and their chol(C) from the highest down."""

    base: Base
    sites: tuple[MeasuredSite, ...]
    contexts: tuple[str, ...]
    factors: tuple[Tensor | None, ...]
    hparams: RomeHparams
    seed: int
    document_start: bool
    products: Products

    @cached_property
    def all_sites(self) -> tuple[Site, ...]:
        """Where a value has its deltas, from the highest down."""
        return tuple(one.site for one in self.sites)

    @cached_property
    def site_refs(self) -> tuple[SiteRef, ...]:
        """The sites by name and by content: hashed once, not for every request."""
        return tuple(site.ref() for site in self.all_sites)

    @cached_property
    def weight_norms(self) -> list[float]:
        """||W||_F of each site."""
        return [site.norm() for site in self.all_sites]

    def can_replay(self, batch: RowBatch) -> bool:
        """Whether *batch* can be replayed (:func:`rompatch.compute.replaying.can_replay`)."""
        return can_replay(self.base, self.all_sites, batch, self.products, self.hparams.precision or "")


def _prepare(
    base: Base, request: EditRequest, contexts: Sequence[str], hparams: RomeHparams, document_start: bool
) -> _Prepared:
    prompts = encode_contexts(base.tokenizer, request, contexts, document_start)
    targets = value_rows(base.tokenizer, request, value_contexts(contexts, hparams.value_contexts), document_start)
    check_length(base.model, max(targets.length, *(row.subject_last + 1 for row in prompts)))
    return _Prepared(request, prompts, targets)


def value_contexts(contexts: Sequence[T], n_contexts: int) -> list[T]:
    """The contexts that v* is optimised under: the bare prompt's and *n_contexts* - 1 others, evenly spread."""
    others = list(contexts[1:])
    n_others = min(n_contexts - 1, len(others))
    return [contexts[0], *(others[(2 * i + 1) * len(others) // (2 * n_others)] for i in range(n_others))]


def _compute_batch(
    settings: _Settings, prepared: Mapping[int, _Prepared], notify: Notify, batch: list[int]
) -> list[Computation | RompatchError]:
    base, hparams = settings.base, settings.hparams
    requests = [prepared[index] for index in batch]
    watch = Stopwatch()
    with evaluation_mode(base.model), watch.phase("keys", share=len(batch)):
        gathered = _gather(settings, [one.prompts for one in requests])
        outputs = torch.stack([torch.stack([keys.output for keys in sites]) for sites in gathered])
    with evaluation_mode(base.model), watch.phase("value", share=len(batch)):
        rows = RowBatch(tuple(one.targets for one in requests))
        replayed = settings.can_replay(rows)
        replayer = make_replayer(base, settings.all_sites, rows, settings.products, replay=replayed)
        objective = Objective(replayer, rows, outputs.norm(dim=2), hparams)
        values = optimise_values(objective, outputs, hparams, _reporter(notify, hparams.steps))
    facts = {"replayed": replayed, "batch": len(batch)}
    return [
        value if isinstance(value, ComputeError) else _finish(settings, one, keys, value, watch.seconds, facts)
        for one, keys, value in zip(requests, gathered, values, strict=True)
    ]


def _gather(settings: _Settings, groups: Sequence[Sequence[EncodedSubject]]) -> list[tuple[GatheredKeys, ...]]:
    """What each site sees and says for each group of prompts; below the highest, where keys are read once the other
    sites' updates are known (:func:`rompatch.compute.spreading.spread`), for the bare prompt alone."""
    base, (highest, *below) = settings.base, settings.all_sites
    read = [gather_many(base.model, base.tokenizer, highest, groups)]
    read += [gather_many(base.model, base.tokenizer, site, [group[:1] for group in groups]) for site in below]
    return list(zip(*read, strict=True))


def _finish(
    settings: _Settings,
    one: _Prepared,
    keys: Sequence[GatheredKeys],
    value: OptimisedValue,
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
) -> Computation | ComputeError:
    """The patch of one request, and what was measured."""
    watch = Stopwatch(dict(seconds))
    try:
        with watch.phase("update"):
            factors = _factors(settings, one, keys[0], value.deltas.double() * settings.hparams.gain)
    except ComputeError as problem:
        return problem
    measured = _measurements(settings, keys, value, factors, watch)
    return Computation(_patch(settings, one.request, factors), {**measured, **facts})


def _factors(settings: _Settings, one: _Prepared, keys: GatheredKeys, deltas: Tensor) -> tuple[SiteFactors, ...]:
    """The patch's tensors at each site, like *deltas* (n_sites, d_out) the highest first."""
    hparams = settings.hparams
    if hparams.spread > 1:
        prompts = value_contexts(one.prompts, hparams.value_contexts)
        sites, factors = settings.all_sites[::-1], settings.factors[::-1]
        with evaluation_mode(settings.base.model):
            return tuple(reversed(spread(settings.base, sites, factors, prompts, deltas.flip(0))))
    return (solve_factors(settings.all_sites[0], keys, deltas[0], settings.factors[0], hparams.keys),)


def _patch(settings: _Settings, request: EditRequest, factors: tuple[SiteFactors, ...]) -> Patch:
    hparams = settings.hparams
    statistics, *more = (
        None if one.statistics is None else one.statistics.ref(hparams.ridge) for one in settings.sites
    )
    header = PatchHeader(
        method="rome",
        hparams=asdict(hparams),
        request=request,
        base=settings.base.ref(),
        sites=settings.site_refs,
        contexts=settings.contexts,
        seed=settings.seed,
        document_start=settings.document_start,
        statistics=statistics,
        more_statistics=tuple(one for one in more if one is not None),
        versions=library_versions(),
        format_version=SOLVED_VERSION if hparams.keys == BOTH else FORMAT_VERSION,
    )
    return Patch(header, factors)


def solve_factors(
    site: Site, gathered: GatheredKeys, delta: Tensor, factor: Tensor | None, key_mode: str
) -> SiteFactors:
    """The patch's tensors from keys, delta (d_out,) float64 and chol(C) (None: C = I). Row 0 is the mean key, row 1 the
    bare prompt's.

    Solved in float64: C's condition number is beyond float32."""
    keys = torch.stack([equations.mean_key(gathered.keys), gathered.bare]).double()
    if key_mode == BOTH:
        return solved_factors(site, keys, delta.expand(2, -1), factor)
    rows = keys.clone() if factor is None else equations.inverse_rows(keys, factor)
    exact_key = keys[KEY_ROWS[key_mode]]
    vector = equations.update_vector(delta, exact_key, rows[0])
    base_out = site.product(keys)
    return SiteFactors(
        u=float_array(rows),
        v=float_array(vector),
        key=float_array(keys),
        value=float_array(base_out + delta),
        base_out=float_array(base_out),
    )


KEY_ROWS = {"mean": 0, "mixed": 1}
"""Which row of a patch's keys its lone update is exact at."""


def _reporter(notify: Notify, steps: int) -> Any:
    return lambda step, _losses: notify("value", step, steps)


def _measurements(
    settings: _Settings,
    gathered: Sequence[GatheredKeys],
    value: OptimisedValue,
    factors: Sequence[SiteFactors],
    watch: Stopwatch,
) -> dict[str, Any]:
    """What a patch is recorded with: the norms of deltas and outputs over all sites, and of the update of the site
    where it is the largest beside its weight."""
    weights = settings.weight_norms
    updates = [update_norm(one) for one in factors]
    largest, weight_norm = max(zip(updates, weights, strict=True), key=lambda pair: pair[0] / pair[1])
    return {
        "losses": [asdict(loss) for loss in map(_rounded, value.losses)],
        "norms": {
            "delta": float(value.deltas.norm()),
            "base_out": float(torch.stack([keys.output for keys in gathered]).norm()),
            "update": largest,
            "weight": weight_norm,
            "relative_update": largest / weight_norm,
            "weights": weights,
        },
        "seconds": watch.seconds,
    }


def _rounded(loss: StepLoss) -> StepLoss:
    return replace(loss, **{name: round(number, 5) for name, number in asdict(loss).items()})
