"""Stacks as versions: every change is a revision, and going back, merging and removing rewrite none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import empty_store
from tiny_patches import record, tiny_patch

from rompatch.edits import EditRequest
from rompatch.errors import BaseMismatchError, ConflictError, PatchNotFoundError, RompatchError, StoreError
from rompatch.patch import Patch
from rompatch.workflows.store import Store, open_store


def fact(store: Store, subject: str, target: str, base: str = "pico") -> Patch:
    patch = tiny_patch(subject, request=EditRequest(subject, "{} is in", target), base=base)
    store.blobs.put(patch)
    record(store.ledger, patch)
    return patch


@pytest.fixture
def store(tmp_path: Path, new_ledger: Path) -> Iterator[Store]:
    """Stack main: r1 tower, r2 and ben, r3 without tower; stack trial, on tower's patch in r1, not active."""
    with open_store(empty_store(new_ledger, tmp_path)) as opened:
        tower, ben = fact(opened, "Tower", "Rome"), fact(opened, "Ben", "Oslo")
        opened.apply(tower.id)
        opened.apply(ben.id)
        opened.revert(tower.id)
        opened.new_stack("trial", start="r1")
        yield opened


def subjects(store: Store, revision: str | None = None) -> list[str]:
    return sorted(patch.subject for patch in store.revision(revision)[1])


def state(store: Store) -> object:
    return store.ledger.history(limit=None), store.ledger.stacks(), store.ledger.active_stack()


def unchanged(store: Store, error: type[RompatchError], words: str, act: Callable[[], object]) -> RompatchError:
    before = state(store)
    with pytest.raises(error, match=words) as caught:
        act()
    assert state(store) == before
    return caught.value


def test_a_revision_has_many_names(store: Store) -> None:
    store.tag("v1", "r2")
    for name in ("r2", "R2", "2", "HEAD~1", "head~", "v1", "r3~1", "v1~0", "main@2", "main@v1", " r2 "):
        assert store.revision(name)[0].number == 2, name
    assert store.revision("trial@HEAD")[0].stack == store.revision("trial")[0].stack == "trial"
    assert subjects(store, "r2") == ["Ben", "Tower"]
    assert subjects(store) == ["Ben"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("r9", "no revision 'r9'.*r0 to r3"),
        ("HEAD~4", "no revision"),
        ("relaese", "Did you mean 'release'"),
        ("mian@r1", "Did you mean 'main'"),
        ("", "names no revision"),
        ("r1~x", "names no revision"),
        ("a@b@c", "names no revision"),
        ("'; DROP TABLE stacks; --", "no tag"),
        ("r" + "9" * 400, "no tag"),
    ],
)
def test_an_unknown_revision_is_refused_with_what_there_is(store: Store, name: str, words: str) -> None:
    store.tag("release")
    for act in (store.checkout, store.diff, store.revision, lambda one: store.tag("new", one)):
        unchanged(store, PatchNotFoundError, words, lambda act=act: act(name))  # type: ignore[misc]


def test_checkout_is_a_new_revision_with_the_old_members(store: Store) -> None:
    log = store.stack_log().revisions
    back = store.checkout("r2", message="both again", reason="T-1")
    assert (back.number, back.action, back.message, back.reason) == (4, "checkout", "both again", "T-1")
    assert back.details == {"from": {"stack": "main", "revision": 2}}
    assert subjects(store) == subjects(store, "r2")
    assert store.stack_log().revisions[1:] == log
    unchanged(store, ConflictError, "already", lambda: store.checkout("r2"))
    assert subjects(store, "HEAD~1") == ["Ben"]
    store.checkout("r0")
    assert subjects(store) == []


def test_checkout_wants_every_patch_and_its_file(store: Store) -> None:
    tower = store.resolve("Tower")
    path = store.blobs.path(tower.id)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    unchanged(store, RompatchError, tower.short_id, lambda: store.checkout("r1"))
    path.unlink()
    unchanged(store, StoreError, "is missing", lambda: store.checkout("r1"))
    path.write_bytes(whole)
    store.remove_stack("trial", force=True)
    store.remove("Tower")
    error = unchanged(store, PatchNotFoundError, "were removed since", lambda: store.checkout("r1"))
    assert tower.short_id in str(error)


def test_a_diff_says_what_to_put_on_and_take_off(store: Store) -> None:
    found = store.diff("r1", "r3")
    assert [one.subject for one in found.added] == ["Ben"]
    assert [one.subject for one in found.removed] == ["Tower"]
    assert store.diff("r1", "r2").n_common == 1
    across = store.diff("trial@HEAD", "main@r1")
    assert (across.added, across.removed, across.n_common) == ((), (), 1)


def test_tags_stay_where_they_are_and_look_like_no_revision(store: Store) -> None:
    store.tag("v1", "r1", message="first")
    unchanged(store, ConflictError, "already, at r1", lambda: store.tag("v1", "r2"))
    for name in ("r1", "7", "HEAD", "a b", "a@b", "a~1", "", "-x", "x" * 101, "a\n"):
        unchanged(store, StoreError, "No tag can be called", lambda name=name: store.tag(name))  # type: ignore[misc]
    store.ledger.add_tag("trial", "v1", 0)
    assert [(tag.name, tag.revision, tag.message) for tag in store.stack_info("main").tags] == [("v1", 1, "first")]


def test_the_log_of_a_stack_and_the_log_of_the_store_agree(store: Store) -> None:
    store.merge("trial")
    store.checkout("r3")
    store.use_stack("trial")
    store.remove_stack("main", force=True)
    store.new_stack("main")
    pages = [store.stack_log("main"), store.stack_log("trial")]
    by_stack = {(page.stack.name, one.number, one.created_at) for page in pages for one in page.revisions}
    events = [event for event in store.history(limit=100).events if event.revision is not None]
    assert by_stack <= {(event.stack, event.revision, event.at) for event in events}
    of_main = [event.kind for event in events if event.stack == "main"]
    assert of_main == ["stack", "drop", "checkout", "merge", "revert", "apply", "apply", "stack"]
    paged = [one for offset in range(0, 12, 3) for one in store.history(limit=3, offset=offset).events]
    assert tuple(paged) == store.history(limit=12).events


def test_the_log_comes_in_pages(store: Store) -> None:
    whole = store.stack_log("main")
    pages = [store.stack_log("main", limit=2, offset=offset) for offset in (0, 2, 4)]
    assert tuple(one for page in pages for one in page.revisions) == whole.revisions
    assert [page.more for page in pages] == [True, False, False]
    assert [store.ledger.revision("main", one.number) for one in whole.revisions] == list(whole.revisions)


def test_a_merge_is_the_union_and_says_where_from(store: Store) -> None:
    louvre = fact(store, "Louvre", "Bonn")
    store.use_stack("trial")
    store.apply(louvre.id)
    merged = store.merge("trial", "main", message="take it")
    assert (merged.stack, merged.action, len(merged.members)) == ("main", "merge", 3)
    assert merged.details == {"from": {"stack": "trial", "revision": 2}}
    unchanged(store, ConflictError, "already", lambda: store.merge("trial", "main"))
    unchanged(store, ConflictError, "into itself", lambda: store.merge("main", "main"))
    unchanged(store, PatchNotFoundError, "Did you mean 'trial'", lambda: store.merge("trail"))


@pytest.mark.parametrize(("prefer", "winner"), [("ours", "Oslo"), ("theirs", "Kiel")])
def test_a_merge_with_contradictions_is_refused_or_resolved(store: Store, prefer: str, winner: str) -> None:
    ours, theirs, louvre = store.resolve("Ben"), fact(store, "Ben", "Kiel"), fact(store, "Louvre", "Bonn")
    store.use_stack("trial")
    store.apply(theirs.id, louvre.id)
    store.use_stack("main")
    error = unchanged(store, ConflictError, "contradicts.*--ours or --theirs", lambda: store.merge("trial"))
    assert ours.short_id in str(error)
    assert theirs.short_id in str(error)
    assert store.plan_merge("trial").to_json()["conflicts"] == [{"theirs": theirs.id, "ours": ours.id}]
    merged = store.merge("trial", prefer=prefer)
    assert sorted(one.request.target_new for one in store.active()) == sorted(["Rome", "Bonn", winner])
    pairs = [{"new": theirs.id, "old": ours.id}]
    expected = {"superseded": pairs} if prefer == "theirs" else {"left_out": [theirs.id]}
    assert merged.details == {"from": {"stack": "trial", "revision": 2}} | expected


def test_a_merge_of_nothing_but_contradictions_says_that_ours_were_kept(store: Store) -> None:
    store.new_stack("other")
    store.use_stack("other")
    store.apply(fact(store, "Ben", "Kiel").id)
    store.use_stack("main")
    lacks = "every patch of other@r1 already but 1 that contradict its own"
    unchanged(store, ConflictError, lacks, lambda: store.merge("other", prefer="ours"))


def test_a_merge_lists_every_patch_that_cannot_be_used(store: Store) -> None:
    louvre = fact(store, "Louvre", "Bonn")
    store.use_stack("trial")
    store.apply(louvre.id)
    tower = store.resolve("Tower")
    store.blobs.path(louvre.id).write_bytes(b"nonsense")
    store.blobs.remove(tower.id)
    for prefer in (None, "ours"):
        error = unchanged(
            store,
            ConflictError,
            "was merged",
            lambda prefer=prefer: store.merge("trial", "main", prefer=prefer),  # type: ignore[misc]
        )
        assert tower.short_id in str(error)
        assert str(store.blobs.path(louvre.id)) in str(error)


def test_a_merge_of_another_base_is_refused(store: Store) -> None:
    foreign = fact(store, "Louvre", "Bonn", base="other")
    store.ledger.create_stack("far", foreign_base := store.ledger.patch(foreign.id).base_id)
    store.ledger.push("far", [foreign.id])
    assert foreign_base
    for act in (lambda: store.merge("far"), lambda: store.checkout("far@HEAD")):
        unchanged(store, BaseMismatchError, "base", act)


def test_an_active_or_full_stack_is_removed_by_force_only(store: Store) -> None:
    unchanged(store, ConflictError, r"it is the active stack and it has 1 patch\.", lambda: store.remove_stack("main"))
    unchanged(store, ConflictError, "it has 1 patch\\.", lambda: store.remove_stack("trial"))
    unchanged(store, PatchNotFoundError, "Did you mean 'trial'", lambda: store.remove_stack("trail"))
    store.new_stack("empty")
    store.remove_stack("empty")
    dropped = store.remove_stack("main", force=True, reason="a mess")
    assert (dropped.action, dropped.members, dropped.reason) == ("drop", (), "a mess")
    assert [info.stack.name for info in store.stacks()] == ["trial"]
    assert (store.stack(), store.active()) == (None, ())
    for act in (lambda: store.apply("Ben"), lambda: store.revert("Ben"), store.revert, store.plan):
        unchanged(store, ConflictError, "rompatch stack use", act)
    store.use_stack("trial")
    store.apply("Ben")
    store.new_stack("main")
    assert store.stack_log("main").stack.revision == 0
    assert store.ledger.integrity_problems() == ()


def test_a_new_stack_wants_a_free_and_plain_name(store: Store) -> None:
    unchanged(store, ConflictError, "exists already", lambda: store.new_stack("main"))
    for name in ("", "a b", "a@b", "-x", "x/../y", "x" * 101):
        unchanged(store, StoreError, "No stack can be called", lambda name=name: store.new_stack(name))  # type: ignore[misc]
    unchanged(store, PatchNotFoundError, "no revision", lambda: store.new_stack("fine", start="r9"))
    assert store.new_stack("fine", use=True).active


def test_the_first_stack_needs_a_base(tmp_path: Path) -> None:
    with open_store(tmp_path / ".rompatch") as empty, pytest.raises(ConflictError, match="which base"):
        empty.new_stack("main")


def test_the_history_of_a_fact_shows_the_chain(store: Store) -> None:
    oslo, kiel = store.resolve("Ben"), fact(store, "ben", "Kiel")
    store.apply(kiel.id, supersede=True, reason="moved")
    chain = store.chain("BEN")
    told = [(event.kind, event.patch_id, event.action, event.others, event.reason) for event in chain.events]
    assert told == [
        ("create", oslo.id, None, (), None),
        ("on", oslo.id, "apply", (), None),
        ("create", kiel.id, None, (), None),
        ("off", oslo.id, "supersede", (kiel.id,), "moved"),
        ("on", kiel.id, "supersede", (oslo.id,), "moved"),
    ]
    assert store.chain(kiel.id[:6]).events == chain.events
    store.remove(oslo.id)
    assert store.chain("Ben").events[-1].kind == "remove"
    with pytest.raises(PatchNotFoundError, match="Did you mean 'Tower'"):
        store.chain("Towr")


def test_expired_patches_are_listed_and_noted_by_the_status(store: Store) -> None:
    from rompatch.workflows.browsing import listing

    ben, tower = store.resolve("Ben"), store.resolve("Tower")
    store.ledger.annotate_patches([ben.id], expires_at="2001-01-01")
    store.ledger.annotate_patches([tower.id], expires_at="2999-01-01")
    assert [one.id for one in store.status().expired] == [ben.id]
    for active in (False, True):
        assert [one.id for one in listing(store, expired_only=True, active_only=active).patches] == [ben.id]
    store.revert("Ben")
    assert store.status().expired == ()
