"""Hyper-parameters as people give them, by name, made the method's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rompatch.errors import RequestError

if TYPE_CHECKING:
    from rompatch.compute.methods.rome_hparams import RomeHparams


def sound_hparams(given: Mapping[str, Any]) -> RomeHparams:
    """The hyper-parameters *given*, the method's defaults for the others.

    Raises:
        RequestError: there is no such hyper-parameter, or its value is none.
    """
    from rompatch.compute.methods.rome_hparams import RomeHparams

    known = [one.name for one in fields(RomeHparams)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise RequestError(
                f"There is no such hyper-parameter: {name!r}.",
                expected=", ".join(sorted(known)),
                next_step=f"Did you mean {close[0]!r}?" if close else None,
            )
    return RomeHparams(**given)
