"""ROME: Rank-One Model Editing (Meng et al. 2022, arXiv 2202.05262). One edit request in, one patch out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rompatch.compute import rome as equations
from rompatch.compute.gather import GatheredKeys, check_length, encode_contexts, gather_keys
from rompatch.compute.methods.base import Computation, Notify, Stopwatch, silent
from rompatch.compute.replay import FullForward, Replay, Replayer
from rompatch.compute.statistics import Statistics
from rompatch.compute.value import OptimisedValue, StepLoss, ValueHparams, ValueRows, optimise_value, value_rows
from rompatch.edits import EditRequest
from rompatch.errors import RequestError
from rompatch.models import Base
from rompatch.patch import Array, Patch, PatchHeader, SiteFactors
from rompatch.sites import Site, layer_modules
from rompatch.tokens import pad_id
from rompatch.versions import library_versions

KEY_MODES = ("mixed", "mean")
_CHECKS: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()
"""Models and their sites whose replay was compared with the plain forward pass, and whether the two agreed."""

REPLAY_TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Largest difference in logits, in standard deviations, at which a replay counts as the model's own forward. A wrong
mask or position is off by several; rounding in half precision is not."""


@dataclass(frozen=True)
class RomeHparams(ValueHparams):
    """The optimisation's knobs and the update's.

    Args:
        keys: "mixed" takes u from the mean key, residual and denominator from the bare prompt's (the authors' code;
            measures best for single edits), "mean" takes the mean key for both (the paper, eq. 5 and 7).
        ridge: added to C, relative to the mean of its diagonal.
    """

    keys: str = "mixed"
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if self.keys not in KEY_MODES:
            raise RequestError(f"There is no key mode {self.keys!r}.", expected=" or ".join(KEY_MODES))
        for name in ("lr", "clamp_norm_factor", "ridge"):
            if not getattr(self, name) > 0:
                raise RequestError(f"The hyper-parameter {name} must be positive.", found=getattr(self, name))
        if self.steps < 1:
            raise RequestError("The optimisation needs at least one step.", found=self.steps)


def compute(
    base: Base,
    request: EditRequest,
    *,
    site: Site,
    contexts: Sequence[str],
    statistics: Statistics | None,
    hparams: RomeHparams | None = None,
    seed: int = 0,
    document_start: bool = True,
    notify: Notify = silent,
) -> Computation:
    """A ROME patch for *request* at *site*; the model is unchanged afterwards.

    Args:
        contexts: prefixes with one ``{}`` each, the bare "{}" first (eq. 7).
        statistics: C; None takes the identity, which costs specificity.
        document_start: start every sequence with a document separator (docs/concepts.md: the attention sink).

    Raises:
        SubjectError, TargetError: the request does not tokenise.
        StatisticsError: C cannot be used.
        ComputeError: the optimisation left the finite numbers.
    """
    hparams = hparams or RomeHparams()
    watch = Stopwatch()
    with watch.phase("keys"):
        rows = encode_contexts(base.tokenizer, request, contexts, document_start)
        gathered = gather_keys(base.model, base.tokenizer, site, rows)
    with watch.phase("value"):
        targets = value_rows(base.tokenizer, request, contexts, document_start)
        check_length(base.model, max(len(row.ids) for row in targets.rows))
        replayer, replayed = make_replayer(base, site, targets)
        value = optimise_value(replayer, targets.target_ids, gathered.output, hparams, _reporter(notify, hparams.steps))
    with watch.phase("update"):
        factor = None if statistics is None else statistics.factor(hparams.ridge)
        factors = solve_factors(site, gathered, value, factor, hparams.keys)
    header = PatchHeader(
        method="rome",
        hparams=asdict(hparams),
        request=request,
        base=base.ref(),
        sites=(site.ref(),),
        contexts=tuple(contexts),
        seed=seed,
        document_start=document_start,
        statistics=None if statistics is None else statistics.ref(hparams.ridge),
        versions=library_versions(),
    )
    patch = Patch(header, (factors,))
    measured = _measurements(site, gathered, value, factors, watch) | {"replayed": replayed}
    return Computation(patch, measured)


def make_replayer(base: Base, site: Site, targets: ValueRows) -> tuple[Replayer, bool]:
    """A replay of *targets*, checked against the plain forward pass once per base and site; the plain loop (and
    False) where the two disagree or the architecture cannot be replayed."""
    plain = FullForward(base.model, site, targets.rows, n_logits=targets.n_logits, pad_id=pad_id(base.tokenizer))
    checks = _CHECKS.setdefault(base.model, {})
    if checks.get(site.module_name) is False:
        return plain, False
    try:
        replay = Replay(
            base.model,
            layer_modules(base.model, base.architecture),
            site,
            targets.rows,
            n_logits=targets.n_logits,
            pad_id=pad_id(base.tokenizer),
        )
        if site.module_name not in checks:
            checks[site.module_name] = agree(replay, plain, site)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        # Whatever a foreign forward pass does not like about being replayed: the plain loop needs none of it.
        return plain, False
    return (replay, True) if checks[site.module_name] else (plain, False)


def agree(left: Replayer, right: Replayer, site: Site) -> bool:
    """Whether two replayers give the same logits at a delta of zero and at another one."""
    tolerance = REPLAY_TOLERANCE.get(site.weight.dtype, 1e-2)
    deltas = (torch.zeros(site.d_out), torch.linspace(-1, 1, site.d_out))
    with torch.no_grad():
        pairs = [(left.logits(delta), right.logits(delta)) for delta in deltas]
    return all(bool((a - b).abs().max() <= tolerance * b.std()) for a, b in pairs)


def solve_factors(
    site: Site, gathered: GatheredKeys, value: OptimisedValue, factor: Tensor | None, key_mode: str
) -> SiteFactors:
    """The patch's tensors from key, delta and chol(C) (None: C = I). Row 0 is the mean key, row 1 the bare prompt's.

    Solved in float64: C's condition number is beyond float32."""
    keys = torch.stack([equations.mean_key(gathered.keys), gathered.bare]).double()
    rows = keys.clone() if factor is None else equations.inverse_rows(keys, factor)
    delta = value.delta.double()
    exact_key = keys[KEY_ROWS[key_mode]]
    vector = equations.update_vector(delta, exact_key, rows[0])
    base_out = keys @ site.matrix().double().cpu().T
    return SiteFactors(
        u=_array(rows), v=_array(vector), key=_array(keys), value=_array(base_out + delta), base_out=_array(base_out)
    )


KEY_ROWS = {"mean": 0, "mixed": 1}
"""Which row of a patch's keys its lone update is exact at."""


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().contiguous().float().numpy()


def _reporter(notify: Notify, steps: int) -> Any:
    return lambda step, _loss: notify("value", step, steps)


def _measurements(
    site: Site, gathered: GatheredKeys, value: OptimisedValue, factors: SiteFactors, watch: Stopwatch
) -> dict[str, Any]:
    weight_norm = float(site.matrix().double().norm())
    update_norm = float(torch.from_numpy(factors.v).norm() * torch.from_numpy(factors.u[0]).norm())
    return {
        "losses": [asdict(loss) for loss in map(_rounded, value.losses)],
        "norms": {
            "delta": float(value.delta.norm()),
            "base_out": float(gathered.output.norm()),
            "update": update_norm,
            "weight": weight_norm,
            "relative_update": update_norm / weight_norm,
        },
        "seconds": watch.seconds,
    }


def _rounded(loss: StepLoss) -> StepLoss:
    return replace(loss, **{name: round(number, 5) for name, number in asdict(loss).items()})
