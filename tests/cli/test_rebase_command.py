"""rebase and create --like on the command line."""

from __future__ import annotations

from pathlib import Path

from calling import Run, read
from pico import save_pico


def test_a_stack_and_a_patch_on_another_base(run: Run, made: str, place: Path) -> None:
    run("apply", made)
    other = save_pico(place / "pico-gpt2", "gpt2")
    planned = run("rebase", "--onto", other, "--dry-run").stdout
    assert "1 planned" in planned
    shown = run("rebase", "--onto", other, "--into", "next", "-m", "for the next release")
    assert "1 made" in shown.stdout
    assert "'next' is at revision 1 with 1 patch" in shown.stdout
    assert "next: rompatch stack use next" in shown.stderr
    like = read(run("create", "--like", made[:12], "--model", other, "--json"))
    assert like["is_new"] is False
    assert like["id"][:12] in shown.stdout
    assert read(run("create", "--like", made[:12], "--json"))["id"] == made
    assert "There is no stack 'mian'" in run("rebase", "--onto", other, "--stack", "mian", code=4).stderr
    assert "already" in run("rebase", "--onto", place / "pico-gpt2", "--stack", "next", code=1).stderr
    assert "Missing option '--onto'" in run("rebase", code=2).stderr
    assert "There is no patch" in run("create", "--like", "Atlantis", code=4).stderr
