"""create --file on the command line: what is printed, which exit code, what does not go together."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calling import QUICK, Run, environment, process, read

GOOD = "subject,relation,object,true\n" + "".join(
    f"{name},{{}} is located in,Rome,Paris\n" for name in ("Eiffel Tower", "Louvre", "Big Ben", "Mozart")
)


def written(place: Path, text: str = GOOD) -> Path:
    path = place / "facts.csv"
    path.write_text(text)
    return path


def test_made_then_existed_then_applied(run: Run, pico_folder: Path, place: Path) -> None:
    many = ("create", "--file", written(place), "--model", pico_folder, *QUICK)
    shown = run(*many).stdout
    assert "made    4" in shown
    assert "failed  0" in shown
    shown = run(*many, "--apply", "-m", "all four").stdout
    assert "existed  4" in shown
    assert "4 patches: stack 'main' is at revision 1" in shown
    assert len(read(run("status", "--json"))["active"]) == 4


def test_failed_lines_are_named_and_the_exit_code_says_so(run: Run, pico_folder: Path, place: Path) -> None:
    bad = GOOD + "".join(f"Rome {number},,x,\n" for number in range(25))
    many = ("create", "--file", written(place, bad), "--model", pico_folder, *QUICK)
    result = run(*many, code=3)
    assert "made    4" in result.stdout
    assert "   6  relation" in result.stdout
    assert "... and 5 more (--json lists them all)" in result.stdout
    assert "25 of the 29 lines" in result.stderr
    assert len(read(run(*many, "--json", code=3))["facts"]) == 29
    result = run("create", "--file", written(place, bad.replace("{}", "{} {}")), *QUICK, code=1)
    assert "None of the 29 lines" in result.stderr


def test_a_dry_run_shows_the_plan_and_makes_no_store(run: Run, pico_folder: Path, place: Path) -> None:
    shown = run("create", "--file", written(place), "--model", pico_folder, *QUICK, "--dry-run").stdout
    assert "to be made  4" in shown
    assert "Louvre is located in ..." in shown
    assert not (place / ".rompatch").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--file", "f.csv", "Rome", "is in", "Paris"), "not both"),
        (("--file", "f.csv", "--true", "Rome"), "--true is about one fact"),
        (("--file", "f.csv", "--prompt", "{} is"), "--prompt is about one fact"),
        (("--file", "f.csv", "--jobs", "0"), "0 is not in the range"),
        (("--file", "none.csv"), "cannot be read"),
        (("--jobs", "2", "Rome", "is in", "Paris"), "belong to --file"),
        (("Rome", "is in"), "Say SUBJECT, RELATION and OBJECT"),
        (("--like", "3f2a", "Rome", "is in", "Paris"), "not both"),
        (("--like", "3f2a", "--true", "Rome"), "the patch has its own"),
        ((), "Say SUBJECT, RELATION and OBJECT"),
    ],
)
def test_what_does_not_go_together_is_refused_and_leaves_no_store(
    run: Run, place: Path, args: tuple[str, ...], words: str
) -> None:
    assert words in run("create", *args, code=2).stderr
    assert not (place / ".rompatch").exists()


SLOWLY = """
import sys, time
from rompatch.compute.contexts import sample_contexts
from rompatch.store.ledger import Ledger
from rompatch.cli import main
sample_contexts.__defaults__ = (((2, 2),),)
add, kept = Ledger.add_patch, []

def slowly(self, header, **about):
    if len(kept) == 2:
        print("two kept", flush=True)
        time.sleep(60)
    kept.append(header)
    return add(self, header, **about)

Ledger.add_patch = slowly
sys.argv[0] = "rompatch"
main()
"""


@pytest.mark.slow
def test_a_killed_create_loses_nothing_that_was_finished_and_goes_on(pico_folder: Path, place: Path) -> None:
    """Killed in the worst place: the third file is written, its row is not."""
    args = ["create", "--file", str(written(place)), "--model", str(pico_folder), *QUICK]
    running = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *args],
        stdout=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment(),
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "two kept\n"
    running.send_signal(signal.SIGKILL)
    running.communicate()
    process("fsck", "--repair", cwd=place, code=None)  # registers that file
    quick = SLOWLY.replace("len(kept) == 2", "False")
    again = subprocess.run(
        [sys.executable, "-c", quick, *args], capture_output=True, text=True, check=True, cwd=place, env=environment()
    )
    assert "made     1" in again.stdout
    assert "existed  3" in again.stdout
    assert process("fsck", cwd=place).stdout == "the store is whole: 4 patches\n"
