"""However a stack came to be, it has the patches that plain sets would have, and the weights of these on a new base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import pico_base
from random_patches import random_patch
from tiny_patches import record

from rompatch.apply.session import PatchedModel
from rompatch.edits import EditRequest
from rompatch.errors import ConflictError
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.sites import tensor_sha256
from rompatch.workflows.store import Store, open_store

FACTS = (("Tower", "Rome"), ("Tower", "Oslo"), ("tower", "Bonn"), ("Ben", "Rome"), ("Ben", "Kiel"), ("Louvre", "Lima"))
LAYERS = (0, 1)
Members = frozenset[int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("apply", "supersede", "revert")), st.integers(0, len(FACTS) - 1)),
        st.tuples(st.just("checkout"), st.integers(0, 5)),
        st.tuples(st.just("merge"), st.sampled_from((None, "ours", "theirs"))),
        st.tuples(st.just("switch"), st.none()),
    ),
    max_size=14,
)


class Naive:
    """Two stacks as lists of plain sets; None where a step must be refused."""

    def __init__(self) -> None:
        self.revisions: dict[str, list[Members]] = {"ada": [frozenset()], "bob": [frozenset()]}
        self.active = "ada"

    @property
    def other(self) -> str:
        return "bob" if self.active == "ada" else "ada"

    def after(self, verb: str, value: object) -> Members | None:
        revisions = self.revisions[self.active]
        now = revisions[-1]
        if verb == "checkout":
            assert isinstance(value, int)
            then = revisions[max(0, len(revisions) - 1 - value)]
            return None if then == now else then
        if verb == "merge":
            return self._merged(now, self.revisions[self.other][-1] - now, value)
        assert isinstance(value, int)
        if (value in now) != (verb == "revert"):
            return None
        if verb == "revert":
            return now - {value}
        foes = {one for one in now if foe(one, value)}
        return None if foes and verb == "apply" else now - foes | {value}

    def _merged(self, now: Members, new: Members, prefer: object) -> Members | None:
        pairs = {(one, other) for one in new for other in now if foe(one, other)}
        if prefer == "ours":
            new -= {one for one, _ in pairs}
        elif prefer == "theirs":
            now -= {other for _, other in pairs}
        return None if not new or (pairs and prefer is None) else now | new


def foe(one: int, other: int) -> bool:
    return FACTS[one][0].lower() == FACTS[other][0].lower() and FACTS[one][1] != FACTS[other][1]


@pytest.fixture(scope="module")
def base() -> Base:
    return pico_base()


@pytest.fixture(scope="module")
def patches(base: Base) -> list[Patch]:
    drawn = []
    for number, (subject, target) in enumerate(FACTS):
        patch = random_patch(base, number, layer=LAYERS[number % 2])
        drawn.append(replace(patch, header=replace(patch.header, request=EditRequest(subject, "{} is in", target))))
    return drawn


@pytest.fixture(scope="module")
def store(patches: list[Patch], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("property") / ".rompatch") as opened:
        for patch in patches:
            opened.blobs.put(patch)
            record(opened.ledger, patch)
        yield opened


def weights(base: Base) -> list[str]:
    return [tensor_sha256(base.site(layer).module.weight) for layer in LAYERS]


def step(store: Store, verb: str, value: object, naive: Naive, ids: list[str]) -> None:
    number = len(naive.revisions[naive.active]) - 1
    if verb in ("apply", "supersede"):
        assert isinstance(value, int)
        store.apply(ids[value], supersede=verb == "supersede")
    elif verb == "revert":
        assert isinstance(value, int)
        store.revert(ids[value])
    elif verb == "checkout":
        assert isinstance(value, int)
        store.checkout(f"r{max(0, number - value)}")
    else:
        store.merge(naive.other, prefer=value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_ends_in_the_weights_of_its_final_set(
    steps: list[tuple[str, object]], store: Store, base: Base, patches: list[Patch]
) -> None:
    ids, naive = [patch.id for patch in patches], Naive()
    for name in ("ada", "bob"):
        if name in {info.stack.name for info in store.stacks()}:
            store.remove_stack(name, force=True)
        store.new_stack(name, use=name == "ada")
    with PatchedModel(base) as live:
        for verb, value in steps:
            if verb == "switch":
                naive.active = naive.other
                store.use_stack(naive.active)
            elif (expected := naive.after(verb, value)) is None:
                with pytest.raises(ConflictError):
                    step(store, verb, value, naive, ids)
            else:
                step(store, verb, value, naive, ids)
                naive.revisions[naive.active].append(expected)
            live.activate(store.active_patches())
        final = naive.revisions[naive.active][-1]
        assert {one.id for one in store.active()} == {ids[one] for one in final}
        for name, revisions in naive.revisions.items():
            assert [set(store.ledger.member_ids(name, number)) for number in range(len(revisions))] == [
                {ids[one] for one in members} for members in revisions
            ]
        grown = weights(base)
    with PatchedModel(base) as fresh:  # which has never heard of the patches that came and went
        fresh.activate([patches[one] for one in sorted(final, reverse=True)])
        assert weights(base) == grown
