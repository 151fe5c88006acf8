"""What only a process of its own can show: speed, what is imported, signals, pipes, terminals, limits."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calling import QUICK, TOWER, contents, environment, process

HEAVY = ("torch", "transformers", "rich", "alembic", "sqlalchemy.dialects.postgresql")
START = [sys.executable, "-m", "rompatch"]


def imported_by(commands: list[tuple[str, ...]], cwd: Path) -> str:
    """Which of the heavy modules are imported after *commands* ran, one after the other, in one process."""
    script = (
        "import contextlib, io, sys\n"
        "from rompatch.cli.program import cli\n"
        f"for args in {commands!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main(list(args), prog_name='rompatch', standalone_mode=False)\n"
        f"print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=cwd, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_only_reads_the_ledger_imports_nothing_heavy(two: tuple[str, str], place: Path) -> None:
    tower, bell = two
    commands = [("--help",), ("create", "--help"), ("list",), ("show", bell), ("log",), ("status",), ("apply", tower)]
    commands += [("revert", "--all"), ("fsck",), ("rm", bell, "--yes"), ("use", "smollm2-135m"), ("completion", "zsh")]
    assert imported_by(commands, place) == ""


def test_python_m_rompatch_is_the_program(place: Path) -> None:
    assert process("--version", cwd=place).stdout.startswith("rompatch ")
    assert process("nonsense", cwd=place, code=2).stderr.startswith("error: There is no command 'nonsense'.")


def test_a_closed_pipe_is_silent(two: tuple[str, str], place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*START, "list"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=place, env=environment()
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


CTRL_C = b"\x03"


def on_a_terminal(args: list[str], cwd: Path, keys: bytes = b"", **more: str) -> tuple[int, str]:
    """Run the program on a terminal of its own and type *keys*; its exit code and what the terminal showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execve(sys.executable, [*START, *args], environment(TERM="xterm-256color", COLUMNS="60", **more))  # noqa: S606
    shown, typed, deadline, pressed = b"", False, time.monotonic() + 60, 0.0
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # Linux says so when the other side has closed
                break
            if not piece:
                break
            shown += piece
        elif keys == CTRL_C and time.monotonic() - pressed > 3:
            # Pressed just before the question began to listen, it is heard with the next key only. Not too soon: a
            # second one while the program ends is its death by the signal.
            typed = False
        if keys and not typed and b"?" in shown:
            os.write(terminal, keys)
            typed, pressed = True, time.monotonic()
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode(errors="replace")


def test_rm_asks_on_a_terminal_and_no_means_no(two: tuple[str, str], place: Path) -> None:
    code, shown = on_a_terminal(["rm", two[0]], place, b"n\n")
    assert code == 1
    assert f"Delete patch {two[0]} (Eiffel Tower -> Rome)?" in shown
    assert "nothing was deleted" in shown
    assert two[0] in process("list", cwd=place).stdout
    assert on_a_terminal(["rm", two[0]], place, b"y\n")[0] == 0
    assert two[0] not in process("list", cwd=place).stdout


def test_ctrl_c_at_the_question_is_an_interrupt(two: tuple[str, str], place: Path) -> None:
    code, shown = on_a_terminal(["rm", two[0]], place, CTRL_C)
    assert code == 130
    assert "interrupted" in shown
    assert "Traceback" not in shown
    assert two[0] in process("list", cwd=place).stdout


def test_a_terminal_gets_colours_unless_told_otherwise(two: tuple[str, str], place: Path) -> None:
    assert "\x1b[1m" in on_a_terminal(["list"], place)[1]
    assert "\x1b[1m" not in on_a_terminal(["list"], place, NO_COLOR="1")[1]
    assert "\x1b[1m" not in on_a_terminal(["list", "--no-color"], place)[1]


def test_a_narrow_terminal_cuts_the_prompt_and_nothing_else(two: tuple[str, str], place: Path) -> None:
    lines = on_a_terminal(["list", "--no-color"], place)[1].splitlines()
    assert any("…" in line for line in lines)
    assert all(two[0] in line or two[1] in line for line in lines[1:] if line.strip())


def start_create(pico_folder: Path, place: Path) -> subprocess.Popen[str]:
    """A create that would take minutes, just after it began to compute."""
    running = subprocess.Popen(
        [*START, *TOWER, "--model", str(pico_folder), "--statistics", "none", "--steps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment(),
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("loading"):
            break
    return running


@pytest.mark.slow
def test_ctrl_c_in_create_leaves_no_mess(pico_folder: Path, place: Path) -> None:
    running = start_create(pico_folder, place)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert out == ""
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_while_loading_is_an_interrupt_too(pico_folder: Path, place: Path) -> None:
    for delay in (0.15, 0.6, 1.5):
        running = subprocess.Popen(
            [*START, *TOWER, "--model", str(pico_folder), *QUICK[:2], "--steps", "1000000"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
            env=environment(),
        )
        time.sleep(delay)
        running.send_signal(signal.SIGINT)
        err = running.communicate(timeout=60)[1]
        assert running.returncode in (130, -signal.SIGINT)  # the latter before Python itself was ready
        assert list(place.iterdir()) == []
        assert "bug" not in err


@pytest.mark.slow
def test_a_killed_create_leaves_a_whole_store(pico_folder: Path, place: Path) -> None:
    running = start_create(pico_folder, place)
    running.kill()
    running.communicate(timeout=60)
    assert process("fsck", cwd=place).stdout == "the store is whole: 0 patches\n"


@pytest.mark.slow
def test_a_full_disk_ends_create_with_a_sentence(made: str, place: Path) -> None:
    before = contents(place / ".rompatch" / "patches")
    # A limit on the size of files stands in for the full disk: both end a write with an error.
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); sys.argv[0] = 'rompatch'\n"
        "from rompatch.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, "create", "Big Ben", "{} is in", "Rome", *QUICK],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=environment(),
    )
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr
    assert "bug" not in done.stderr
    assert contents(place / ".rompatch" / "patches") == before
    assert process("fsck", cwd=place).stdout == "the store is whole: 1 patch\n"


@pytest.mark.slow
def test_progress_is_drawn_on_a_terminal_only(pico_folder: Path, place: Path) -> None:
    args = [*TOWER, "--model", str(pico_folder), "--statistics", "none", "--steps", "5"]
    _code, shown = on_a_terminal(args, place)
    assert "value" in shown
    assert "━" in shown
    piped = process(*args, "--again", cwd=place)
    assert "━" not in piped.stderr
    assert [line.split()[0] for line in piped.stderr.splitlines()] == ["loading", "next:"]


def test_a_terminal_without_unicode_gets_escapes(two: tuple[str, str], place: Path) -> None:
    done = process("list", cwd=place, PYTHONIOENCODING="ascii")
    assert two[0] in done.stdout
