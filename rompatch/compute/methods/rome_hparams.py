"""The hyper-parameters of ROME, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rompatch.compute.value import OPTIMISERS, ValueHparams
from rompatch.errors import RequestError
from rompatch.models import DTYPES

BOTH = "both"
KEY_MODES = ("mixed", "mean", BOTH)
_NUMBERS = {
    **dict.fromkeys(("lr", "clamp_norm_factor", "ridge", "gain"), "positive"),
    **dict.fromkeys(
        ("weight_decay", "kl_factor", "early_stop_loss", "target_loss", "norm_penalty"), "a number not below zero"
    ),
}


@dataclass(frozen=True)
class RomeHparams(ValueHparams):
    """The optimisation's knobs and the update's.

    Args:
        keys: "mixed" takes u from the mean key, residual and denominator from the bare prompt's (the authors' code),
            "mean" takes the mean key for both (the paper, eq. 5 and 7); "both" gives mean key and bare prompt's key the
            same residual, so that neither gets more of it than was optimised.
        ridge: added to C, relative to the mean of its diagonal.
        gain: the residual as a multiple of the optimised delta: above 1, a margin against what other patches do.
        spread: at how many sites the value has a delta, the edited layer's and those right below; above 1 with keys
            "both" only.
        value_contexts: how many of the contexts v* is optimised under; k* is the mean over all of them, or with spread
            above 1, where a key costs a pass over all contexts at each site, over these.
        precision: dtype of the products above the site while v* is optimised; None is the base's own. A patch records
            which.
    """

    keys: str = "mixed"
    ridge: float = 1e-4
    gain: float = 1.0
    spread: int = 1
    value_contexts: int = 21
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.keys not in KEY_MODES:
            raise RequestError(f"There is no key mode {self.keys!r}.", expected=" or ".join(KEY_MODES))
        if self.optimiser not in OPTIMISERS:
            raise RequestError(f"There is no optimiser {self.optimiser!r}.", expected=" or ".join(OPTIMISERS))
        if self.precision is not None and self.precision not in DTYPES:
            raise RequestError(f"There is no precision {self.precision!r}.", expected=", ".join(DTYPES))
        self._check_numbers()
        if self.spread > 1 and self.keys != BOTH:
            raise RequestError(
                "A spread above 1 needs the key mode 'both'.",
                found=f"spread {self.spread}, keys {self.keys}",
                next_step="Add --key both, or use --spread 1.",
            )

    def _check_numbers(self) -> None:
        for name, least in _NUMBERS.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and least == "positive"):
                raise RequestError(f"The hyper-parameter {name} must be {least}.", found=repr(value))
        for name in ("steps", "value_contexts", "spread"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(
                    f"The hyper-parameter {name} must be a whole number of at least 1.", found=repr(value)
                )
