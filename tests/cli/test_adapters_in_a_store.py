"""A patch without a request goes wherever one with a request goes; where a request is needed, it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import Run, put, read
from tiny_patches import tiny_adapter, tiny_patch


@pytest.fixture
def adapter(place: Path) -> str:
    put(tiny_patch(), place)
    return put(tiny_adapter("House style"), place)


def test_it_is_listed_shown_and_found_by_its_title(run: Run, adapter: str) -> None:
    assert "House style" in run("list").stdout
    shown = run("show", "house  STYLE").stdout
    assert "title       House style" in shown
    assert "added to what the other patches give" in shown
    listed = read(run("list", "--json"))["patches"][0]
    assert (listed["subject"], listed["title"], listed["target_new"]) == ("House style", "House style", None)


def test_it_is_applied_beside_a_fact_and_taken_back(run: Run, adapter: str) -> None:
    applied = run("apply", "Eiffel Tower", adapter)
    assert f"applied {adapter} (House style)" in applied.stdout
    assert "House style" in run("status").stdout
    assert f"reverted {adapter} (House style)" in run("revert", "House style").stdout
    assert "House style" in run("log").stdout
    assert "removed" in run("rm", adapter, "--yes").stdout


def test_a_fact_on_the_subject_that_is_its_title_shares_no_key_with_it(run: Run, place: Path) -> None:
    named = put(tiny_adapter("Eiffel Tower"), place)
    result = run("apply", named, put(tiny_patch(), place))
    assert "share one key" not in result.stderr


def test_verifying_it_needs_a_suite(run: Run, adapter: str) -> None:
    assert "--suite FILE" in run("verify", adapter, code=2).stderr


def test_the_store_is_whole_with_it(run: Run, adapter: str) -> None:
    assert read(run("fsck", "--json"))["findings"] == []
