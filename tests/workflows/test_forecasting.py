"""apply --plan: told from files, changing nothing; and the gates that a store holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_patches import record, tiny_adapter, tiny_patch

from rompatch.apply.solve import solve_stack
from rompatch.edits import EditRequest
from rompatch.errors import BaseMismatchError, ConflictError, GateError, PatchFileError, RequestError, StoreError
from rompatch.patch import Patch
from rompatch.store.records import ScoreRecord
from rompatch.workflows.stack_gates import GATES, check_verified, enforce
from rompatch.workflows.store import Store, open_store

NORMS = {"norms": {"weight": 10.0}}


def about(subject: str, seed: int, target: str = "Rome", layer: int = 1) -> Patch:
    request = EditRequest(subject, "{} is located in", target, "Paris", None)
    return tiny_patch(subject, layers=(layer,), seed=seed, request=request)


def added(store: Store, patch: Patch, **details: object) -> Patch:
    store.blobs.put(patch)
    record(store.ledger, patch, **details)
    return patch


@pytest.fixture
def three(store: Store) -> list[Patch]:
    """Two active patches and one that is not; the norm of their weight is known from one of them."""
    made = [added(store, about(f"Tower {n}", 3 * n), **({"measurements": NORMS} if n == 1 else {})) for n in range(3)]
    store.apply(made[0].id, made[1].id)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "-" not in path.suffix}


def test_a_plan_is_the_forecast_of_the_stack_that_would_be(store: Store, three: list[Patch]) -> None:
    found = store.plan(three[2].id)
    (site,) = found.sites
    (update,) = solve_stack(three).values()
    assert site.forecast.delta_norm == pytest.approx(np.linalg.norm(update.dense()))
    assert site.forecast.relative_norm == pytest.approx(np.linalg.norm(update.dense()) / 10)
    assert [one.id for one in site.patches] == sorted(patch.id for patch in three)
    assert [one.id for one in found.adding] == [three[2].id]
    assert found.stack.revision == 1


def test_a_plan_changes_nothing(store: Store, three: list[Patch]) -> None:
    store.ledger.session.reading()
    before = files(store.root)
    store.plan(three[2].id)
    store.plan()
    assert files(store.root) == before
    assert store.stack().revision == 1  # type: ignore[union-attr]


def test_a_plan_without_names_is_about_the_stack_as_it_is(store: Store, three: list[Patch]) -> None:
    found = store.plan()
    assert found.adding == ()
    assert {one.id for one in found.members} == {three[0].id, three[1].id}
    assert found.neighbours() == ()


def test_neighbours_are_active_patches_that_new_ones_disturb(store: Store, three: list[Patch]) -> None:
    found = store.plan(three[2].id, threshold=0.0)
    (site,) = found.sites
    names = [one.id for one in site.patches]
    source = names.index(three[2].id)
    harms = {name: site.forecast.harm[index, source] for index, name in enumerate(names) if index != source}
    assert [one.id for one in found.neighbours()] == sorted(harms, key=lambda one: -harms[one])
    assert store.plan(three[2].id, threshold=1e9).neighbours() == ()


def test_what_apply_refuses_a_plan_refuses(store: Store, three: list[Patch]) -> None:
    other = added(store, about("Tower 0", 50, target="Oslo"))
    with pytest.raises(ConflictError, match="contradicts"):
        store.plan(other.id)
    with pytest.raises(ConflictError, match="already active"):
        store.plan(three[0].id)
    foreign = added(store, tiny_patch("Louvre", base="another", seed=9))
    with pytest.raises(BaseMismatchError):
        store.plan(foreign.id)
    store.blobs.path(three[2].id).write_bytes(b"no patch")
    with pytest.raises(PatchFileError):
        store.plan(three[2].id)


def test_the_first_plan_of_a_store_needs_no_stack(store: Store) -> None:
    with pytest.raises(StoreError, match="no stack yet"):
        store.plan()
    patch = added(store, about("Tower", 1))
    found = store.plan(patch.id)
    assert (found.stack.revision, len(found.members)) == (0, 1)
    assert found.sites[0].forecast.relative_norm is None
    assert store.stack() is None


def test_an_adapter_in_a_plan_speaks_json(store: Store, three: list[Patch]) -> None:
    adapter = added(store, tiny_adapter())
    data = store.plan(adapter.id).to_json()
    for site in data["sites"]:
        if adapter.id in site["patches"]:
            assert site["residuals"][site["patches"].index(adapter.id)] is None


def test_planning_loads_no_torch(store: Store, three: list[Patch]) -> None:
    script = (
        f"import sys, rompatch; s = rompatch.open_store({str(store.root)!r}); "
        f"s.plan({three[2].id!r}).to_json(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# Gates


def test_gates_are_kept_by_the_store(store: Store) -> None:
    assert store.gates() == {}
    assert store.set_gates(max_delta_norm=0.5, min_S=0.8) == {"max_delta_norm": 0.5, "min_S": 0.8}
    assert store.set_gates(max_drift=0.02)["min_S"] == 0.8
    with open_store(store.root) as again:
        assert set(again.gates()) == {"max_delta_norm", "min_S", "max_drift"}
        assert again.unset_gates("min_S", "max_drift") == {"max_delta_norm": 0.5}
    assert store.gates() == {"max_delta_norm": 0.5}


@pytest.mark.parametrize(
    ("name", "limit"), [("min_S", 1.01), ("min_S", -0.1), ("max_drift", float("nan")), ("max_delta_norm", float("inf"))]
)
def test_limits_out_of_range_are_refused(store: Store, name: str, limit: float) -> None:
    with pytest.raises(RequestError, match=name):
        store.set_gates(**{name: limit})
    assert store.gates() == {}


def test_an_unknown_gate_is_refused_with_the_one_that_was_meant(store: Store) -> None:
    with pytest.raises(RequestError, match="Did you mean 'min_S'"):
        store.set_gates(min_s=0.5)
    with pytest.raises(RequestError, match="no gate 'speed'"):
        store.unset_gates("speed")


def test_a_plan_says_which_gates_would_be_missed(store: Store, three: list[Patch]) -> None:
    store.set_gates(max_delta_norm=0.0, max_interference=1e9, min_S=0.8)
    found = store.plan(three[2].id)
    assert [(result.gate, result.passed) for result in found.gates] == [
        ("min_S", False),
        ("max_delta_norm", False),
        ("max_interference", True),
    ]
    assert "never verified" in found.missed_gates[0]
    assert f"rompatch verify {three[2].short_id}" in found.missed_gates[0]


def test_apply_is_held_to_the_gates_and_overriding_is_recorded(store: Store, three: list[Patch]) -> None:
    store.set_gates(max_delta_norm=0.0, min_S=0.8)
    with pytest.raises(GateError, match="forbid") as caught:
        store.apply(three[2].id)
    assert caught.value.exit_code == 3
    assert store.stack().revision == 1  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="with a reason"):
        store.apply(three[2].id, override=["min_S", "max_delta_norm"])
    revision = store.apply(three[2].id, override=["min_S", "max_delta_norm"], reason="urgent")
    assert revision.reason == "urgent"
    assert [one["gate"] for one in revision.details["overridden"]] == ["min_S", "max_delta_norm"]
    assert revision.details["overridden"][0]["patch_id"] == three[2].id


def test_a_gate_on_drift_needs_apply_to_verify(store: Store, three: list[Patch]) -> None:
    store.set_gates(max_drift=0.1)
    with pytest.raises(GateError, match="apply with --verify"):
        store.apply(three[2].id)


def test_without_gates_no_stack_is_read(store: Store, three: list[Patch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rompatch.workflows.gatekeeping.would_be", None)
    monkeypatch.setattr("rompatch.workflows.site_forecasts.forecasts", None)
    store.apply(three[2].id)
    assert len(store.active()) == 3


def test_a_norm_that_nobody_measured_misses_the_gate(store: Store) -> None:
    patch = added(store, about("Tower", 1))
    store.set_gates(max_delta_norm=1e9)
    assert "is not known" in store.plan(patch.id).missed_gates[0]


def test_min_S_reads_the_latest_verification(store: Store, three: list[Patch]) -> None:
    patch = store.resolve(three[2].id)
    for s in (0.9, 0.7):
        store.ledger.record_verification(
            "suite", source="file", patch_id=patch.id, scores=[ScoreRecord("post", "s", s, 3)]
        )
    (result,) = check_verified(store, [patch], {"min_S": 0.8})
    assert (result.value, result.passed) == (0.7, False)
    assert check_verified(store, [patch], {"min_S": 0.7})[0].passed
    assert check_verified(store, [patch], {}) == ()


def test_overriding_needs_a_reason_and_leaves_a_record(store: Store, three: list[Patch]) -> None:
    store.set_gates(max_delta_norm=0.0, min_S=0.8)
    found = store.plan(three[2].id)
    with pytest.raises(GateError, match="forbid") as caught:
        enforce(found.gates, found.members)
    assert "--override min_S --override max_delta_norm" in str(caught.value)
    with pytest.raises(GateError):
        enforce(found.gates, found.members, override=["min_S"], reason="urgent")
    with pytest.raises(RequestError, match="with a reason"):
        enforce(found.gates, found.members, override=list(GATES), reason=" ")
    with pytest.raises(RequestError, match="no gate"):
        enforce((), found.members, override=["speed"], reason="x")
    details = enforce(found.gates, found.members, override=["min_S", "max_delta_norm"], reason="urgent")
    assert [one["gate"] for one in details["overridden"]] == ["min_S", "max_delta_norm"]
    assert enforce((), found.members) == {}
