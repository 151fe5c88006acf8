"""The original authors' code, run on the default model, against ours with the same inputs.

``ROMPATCH_DATA/reference`` holds what their implementation computed there: contexts, C, hyper-parameters, and per edit
u, v, the loss of every step and the scores before and after.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rompatch.apply.session import PatchedModel
from rompatch.compute.methods import METHODS
from rompatch.compute.methods.base import Computation
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.statistics import Statistics, sampled_key
from rompatch.models import Base
from rompatch.verify.building import suite_from_counterfact
from rompatch.verify.evaluation import evaluate
from rompatch.verify.records import request_of

pytestmark = pytest.mark.slow

EDITS = range(6)
SCORE_TOLERANCE = 2e-3
"""Scores are means over at most ten prompts; magnitudes move with the last digits of the logits."""


@dataclass(frozen=True)
class Reference:
    inputs: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    records: dict[int, dict[str, Any]]

    def statistics(self, base: Base) -> Statistics:
        site = base.site(self.inputs["layer"])
        return Statistics(sampled_key(base, site, 400_000, 0), self.tensors["C"], 400_000)

    def hparams(self) -> RomeHparams:
        given = self.inputs["hparams"]
        names = ("lr", "steps", "weight_decay", "clamp_norm_factor", "kl_factor", "early_stop_loss", "keys")
        return RomeHparams(ridge=1e-4, **{name: given[name] for name in names})


@pytest.fixture(scope="module")
def reference(data_folder: Path) -> Reference:
    folder = data_folder / "reference"
    inputs = json.loads((folder / "rome-smollm2-layer4.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "rome-smollm2-layer4.safetensors")
    records = {
        record["case_id"]: record
        for name in ("counterfact-300.json", "counterfact-extra-204.json")
        for record in json.loads((data_folder / "counterfact" / name).read_text(encoding="utf-8"))
    }
    return Reference(inputs, tensors, records)


@pytest.fixture(scope="module")
def computed(reference: Reference, default_base: Base) -> dict[int, Computation]:
    """Every edit of the reference, computed by us from the same inputs."""
    statistics = reference.statistics(default_base)
    return {
        index: METHODS["rome"].compute(
            default_base,
            request_of(edit),
            site=default_base.site(reference.inputs["layer"]),
            contexts=reference.inputs["contexts"],
            statistics=statistics,
            hparams=reference.hparams(),
            document_start=reference.inputs["hparams"]["document_start"],
        )
        for index, edit in enumerate(reference.inputs["edits"])
    }


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_the_reference_holds_the_edits_that_are_tested(reference: Reference) -> None:
    assert len(reference.inputs["edits"]) == len(EDITS)


@pytest.mark.parametrize("index", EDITS)
def test_u_and_v_are_the_authors(index: int, reference: Reference, computed: dict[int, Computation]) -> None:
    factors = computed[index].patch.factors[0]
    their_u, their_v = (reference.tensors[f"edit.{index}.{name}"].numpy() for name in "uv")
    length = np.linalg.norm(factors.u[0])  # theirs has unit length; ours is C^-1 k as it is
    our_u, our_v = factors.u[0] / length, factors.v * length
    assert cosine(our_u, their_u) > 0.9999
    assert cosine(our_v, their_v) > 0.9999
    assert np.linalg.norm(our_v) == pytest.approx(np.linalg.norm(their_v), rel=0.01)


@pytest.mark.parametrize("index", EDITS)
def test_the_loss_of_every_step_is_the_authors(
    index: int, reference: Reference, computed: dict[int, Computation]
) -> None:
    ours = [loss["total"] for loss in computed[index].measurements["losses"]]
    assert ours == pytest.approx(reference.inputs["edits"][index]["losses"], abs=2e-3)
    assert computed[index].measurements["replayed"]


@pytest.mark.parametrize("index", EDITS)
def test_the_scores_before_and_after_are_the_authors(
    index: int, reference: Reference, computed: dict[int, Computation], default_base: Base
) -> None:
    edit = reference.inputs["edits"][index]
    record = reference.records[edit["case_id"]]
    suite = suite_from_counterfact(record)
    with PatchedModel(default_base) as patched:
        for phase, patches in (("pre", []), ("post", [computed[index].patch])):
            patched.activate(patches)
            scores = evaluate(patched.model, default_base.tokenizer, suite, document_start=False).scores.to_json()
            for name, theirs in edit[phase].items():
                assert scores[name] == pytest.approx(theirs, abs=SCORE_TOLERANCE), (phase, name)
