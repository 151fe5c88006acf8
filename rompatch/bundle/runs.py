"""The verification runs in a bundle: what the members scored where they come from, as provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.bundle.limits import RUNS
from rompatch.bundle.manifest import TIME
from rompatch.patch import canonical_json
from rompatch.patchfile.checks import DamageError, check_types, check_values, require

_PHASES = ("pre", "post")
_LONGEST_METRIC = 64


@dataclass(frozen=True)
class BundledRun:
    """One run of a suite over one member: ``scores`` are (phase, metric, value or None, n)."""

    patch_id: str
    suite: str
    source: str
    created_at: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    prompts: Any
    scores: tuple[tuple[str, str, float | None, int], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return vars(self) | {"scores": [list(score) for score in self.scores]}


def spell(runs: Sequence[BundledRun]) -> bytes:
    """The entry ``runs.json``."""
    return canonical_json([run.to_json() for run in runs]).encode()


def parse(data: bytes, members: Sequence[str]) -> tuple[BundledRun, ...]:
    """The runs in *data*, every one of them of a member.

    Raises:
        DamageError: anything is wrong with it.
    """
    try:
        values = json.loads(data)
        check_values(values)
        runs = tuple(BundledRun(**one | {"scores": tuple(tuple(score) for score in one["scores"])}) for one in values)
        same = spell(runs) == data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamageError(f"its {RUNS} does not describe verification runs ({error})") from None
    require(same, f"its {RUNS} is not in canonical spelling")
    for run in runs:
        check_types(run, dict.fromkeys(("patch_id", "suite", "source", "created_at"), str), "a run")
        objects = all(isinstance(value, Mapping) for value in (run.settings, run.environment))
        require(objects, "settings or environment of a run are no JSON object")
        require(run.patch_id in members, "a run is of a patch that is not in the bundle")
        require(bool(TIME.fullmatch(run.created_at)), "the time of a run is no time")
        keys = [score[:2] for score in run.scores]
        require(len(set(keys)) == len(keys), "a run has a score twice")
        require(all(map(_is_score, run.scores)), "a score of a run is none")
    return runs


def _is_score(score: tuple[Any, ...]) -> bool:
    if len(score) != 4 or score[0] not in _PHASES or type(score[1]) is not str or len(score[1]) > _LONGEST_METRIC:
        return False
    value, n = score[2:]
    finite = value is None or (type(value) in (int, float) and math.isfinite(value))
    return finite and type(n) is int and n >= 0
