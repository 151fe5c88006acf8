"""Key statistics of many layers as a user builds them: interrupted, killed, damaged, twice at once; never wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard
from pico import pico_model, toy_tokenizer

import rompatch
from rompatch.compute import collecting
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics_files import StatisticsCache, StatisticsFile
from rompatch.errors import OutputError, SiteError, StatisticsError
from rompatch.workflows import passes, statistics
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

LAYERS = (0, 2)
TOKENS = 3000
BLOCK = 600
SENTENCES = "The Eiffel Tower is located in the city of Paris. Big Ben is in London, and Mozart was born in Salzburg.\n"


@pytest.fixture(autouse=True)
def _saved_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(passes, "_SAVE_SHARE", -1)
    monkeypatch.setattr("rompatch.compute.second_moment.BLOCK_TOKENS", BLOCK)
    monkeypatch.setattr("rompatch.compute.statistics._SAMPLE_TOKENS", 8)


def written(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(SENTENCES * 150)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
def build(store: Store, spec: BaseSpec, text: Path) -> Callable[..., list[StatisticsFile]]:
    def build_at(*layers: int) -> list[StatisticsFile]:
        return store.build_statistics_at(layers or LAYERS, str(text), tokens=TOKENS, spec=spec)

    return build_at


@pytest.fixture(scope="module")
def expected(saved_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """C of each layer by a pass of its own that nothing disturbed, in another cache."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as elsewhere, open_store(folder / ".rompatch") as store:
        elsewhere.setattr("rompatch.compute.second_moment.BLOCK_TOKENS", BLOCK)
        elsewhere.setenv("ROMPATCH_CACHE", str(folder))
        options = {"tokens": TOKENS, "spec": BaseSpec(str(saved_base))}
        return [matrix(store.build_statistics(str(written(folder)), layer=layer, **options)) for layer in LAYERS]


def cache() -> StatisticsCache:
    return statistics.statistics_cache()


def matrix(file: StatisticsFile) -> torch.Tensor:
    return StatisticsCache(file.path.parent).load(file).second_moment


def left_behind(suffix: str = "") -> list[Path]:
    folder = cache().folder
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix)) if folder.is_dir() else []


def same(files: list[StatisticsFile], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(matrix(file), C) for file, C in zip(files, expected, strict=True))


def interrupt_at(heard: Heard, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C behind that step of progress."""
    steps = count(1)
    monkeypatch.setattr(heard, "step", lambda *_: signal.raise_signal(signal.SIGINT) if next(steps) == step else None)


def test_layers_in_one_pass_have_the_statistics_of_a_pass_each(
    build: Callable[..., list[StatisticsFile]], expected: list[torch.Tensor], heard: Heard
) -> None:
    files = build(*LAYERS)
    assert [file.key.parameter for file in files] == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS]
    assert [file.tokens for file in files] == [TOKENS] * 2
    assert same(files, expected)
    assert left_behind(".partial") == []
    assert [done for _, done, _ in heard.steps] == sorted({done for _, done, _ in heard.steps}), "one pass"


def test_a_layer_that_has_its_file_is_left_out_and_its_file_untouched(
    build: Callable[..., list[StatisticsFile]], expected: list[torch.Tensor], heard: Heard
) -> None:
    (first,) = build(LAYERS[1])
    before = first.path.stat().st_mtime_ns
    files = build()
    assert files[1] == first
    assert first.path.stat().st_mtime_ns == before
    assert same(files, expected)
    assert any("exist already" in note and first.id[:12] in note for note in heard.notes)
    heard.steps.clear()
    assert build() == files
    assert heard.steps == []


@pytest.mark.parametrize("step", [1, 3, 5])
def test_ctrl_c_keeps_every_layer_and_the_same_command_goes_on(
    step: int,
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passes, "_SAVE_EVERY_SECONDS", 1000.0)
    with monkeypatch.context() as patched:
        interrupt_at(heard, patched, step)
        with pytest.raises(KeyboardInterrupt):
            build()
    kept = 508 * step
    assert heard.notes[-1] == f"kept {kept:,} tokens; the same command goes on from there"
    assert len(left_behind(".partial")) == len(left_behind()) == len(LAYERS)
    files = build()
    assert sum(f"going on after {kept:,} of 3,000" in note for note in heard.notes) == len(LAYERS)
    assert heard.steps[0][1] > kept
    assert same(files, expected)
    assert left_behind(".partial") == []


@pytest.mark.parametrize(("where", "name"), [(SecondMoment, "_fold"), (collecting, "site_inputs")])
def test_ctrl_c_inside_the_forward_pass_or_the_sums_is_no_different(
    where: Any,
    name: str,
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = getattr(where, name), count(1)

    def pressed(*args: Any) -> Any:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(where, name, pressed)
        with pytest.raises(KeyboardInterrupt):
            build()
    assert len(left_behind(".partial")) == len(LAYERS)
    assert same(build(), expected)


def test_layers_that_were_interrupted_apart_go_on_together(
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for layer, step in zip(LAYERS, (4, 2), strict=True):
        with monkeypatch.context() as patched:
            interrupt_at(heard, patched, step)
            with pytest.raises(KeyboardInterrupt):
                build(layer)
    assert same(build(), expected)


def test_sampled_text_goes_on_after_ctrl_c_too(
    store: Store, spec: BaseSpec, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled() -> list[StatisticsFile]:
        return store.build_statistics_at(LAYERS, tokens=800, seed=3, spec=spec)

    whole = [matrix(file) for file in sampled()]
    for file in left_behind():
        file.unlink()
    with monkeypatch.context() as patched:
        interrupt_at(heard, patched, 2)
        with pytest.raises(KeyboardInterrupt):
            sampled()
    assert len(left_behind(".partial")) == len(LAYERS)
    heard.steps.clear()
    files = sampled()
    assert len(heard.steps) == 2, "two batches of texts were there already"
    assert same(files, whole)
    assert [(file.tokens, file.provenance["seed"]) for file in files] == [(800, 3)] * 2


def damaged(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def of_another_layer(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


@pytest.mark.parametrize("spoil", [damaged, empty, of_another_layer])
def test_a_spoilt_interrupted_pass_is_named_and_begun_anew(
    spoil: Callable[[Path, Path], None],
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(heard, patched, 2)
        with pytest.raises(KeyboardInterrupt):
            build()
    path, other = left_behind(".partial")
    spoil(path, other)
    heard.notes.clear()
    assert same(build(), expected)
    (note,) = (note for note in heard.notes if "anew" in note)
    assert path.name in note
    assert sum("going on after" in note for note in heard.notes) == 1, "the other layer's is whole"


def test_a_text_that_shrinks_between_runs_begins_anew(
    build: Callable[..., list[StatisticsFile]], text: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(heard, patched, 2)
        with pytest.raises(KeyboardInterrupt):
            build()
    text.write_text(SENTENCES)
    (file, _) = build()
    assert 0 < file.tokens < 100
    assert not any("going on" in note for note in heard.notes)


@pytest.mark.parametrize("step", [1, 6])
def test_a_text_that_changes_during_the_pass_is_refused_and_nothing_new_is_kept(
    step: int,
    build: Callable[..., list[StatisticsFile]],
    text: Path,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passes, "_SAVE_EVERY_SECONDS", 1000.0)
    steps = count(1)
    monkeypatch.setattr(heard, "step", lambda *_: text.write_text("Rome.\n") if next(steps) == step else None)
    with pytest.raises(StatisticsError, match=r"text\.txt was changed while it was read"):
        build()
    assert left_behind() == []


def test_a_full_disk_is_an_error_that_leaves_nothing_half(
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real, calls = os.fsync, count(1)
    with monkeypatch.context() as patched:  # every file is synced twice, itself and its folder
        patched.setattr(os, "fsync", lambda fd: full() if next(calls) > 6 else real(fd))
        with pytest.raises(OutputError, match=r"No space left.*ROMPATCH_CACHE"):
            build()
    assert len(left_behind(".partial")) == len(left_behind()) == len(LAYERS)
    assert same(build(), expected)
    assert {note.rpartition("after ")[2] for note in heard.notes if "going on" in note} == {
        "508 of 3,000 tokens",
        "1,016 of 3,000 tokens",
    }, "the layers stand where the disk left them"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_keys_that_are_not_finite_are_refused_and_not_kept(
    value: float, store: Store, text: Path, tmp_path: Path
) -> None:
    model = pico_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 0] = value
    model.save_pretrained(tmp_path / "bad")
    toy_tokenizer().save_pretrained(tmp_path / "bad")
    with pytest.raises(StatisticsError, match="not finite"):
        store.build_statistics_at((0, 1), str(text), tokens=TOKENS, spec=BaseSpec(str(tmp_path / "bad")))
    assert not any(path.name.endswith(".safetensors") for path in left_behind())


@pytest.mark.parametrize(
    ("layers", "words"),
    [((1, 3), "3"), ((-1,), "-1"), ((0, 1, 0), "Layer 0 is named twice"), (range(10**9), "3")],
)
def test_layers_that_are_not_there_or_named_twice_are_refused(
    store: Store, spec: BaseSpec, text: Path, layers: tuple[int, ...], words: str
) -> None:
    with pytest.raises(SiteError, match=words):
        store.build_statistics_at(layers, str(text), tokens=10, spec=spec)
    assert left_behind() == []


def test_a_build_that_finishes_inside_another_of_the_same_changes_nothing(
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As two processes do: the inner one goes on from the outer one's file, finishes, and removes it."""
    steps, inner = count(1), []
    monkeypatch.setattr(heard, "step", lambda *_: inner.extend(build()) if next(steps) == 3 else None)
    outer = build()
    assert same(inner, expected)
    assert same(outer, expected)
    assert [path.name for path in left_behind()] == sorted(f"{file.id}.safetensors" for file in outer)


CHILD = f"""
import os, signal, sys
import rompatch
from rompatch.compute import second_moment
from rompatch.compute.statistics_files import StatisticsCache
from rompatch.workflows import passes
from rompatch.workflows.opened import BaseSpec

passes._SAVE_EVERY_SECONDS = passes._SAVE_SHARE = -1.0
second_moment.BLOCK_TOKENS = {BLOCK}
base, text, tokens, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
real, calls = os.replace, iter(range(1, 10**6))

def replace(*args):
    if next(calls) == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args)

with rompatch.open_store() as store:
    os.replace = replace
    store.build_statistics_at((0, 2), text, tokens=tokens, spec=BaseSpec(base))
"""


def child(spec: BaseSpec, text: Path, dies_at: int) -> subprocess.Popen[bytes]:
    """A build in a process of its own that is killed just before its *dies_at*-th file gets its name (0: never)."""
    args = [str(spec.model), str(text), str(TOKENS), str(dies_at)]
    env = {**os.environ, "PYTHONPATH": str(Path(rompatch.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, *args], env=env, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [1, 4, 14])
def test_a_killed_build_goes_on_to_the_same_statistics(
    dies_at: int,
    build: Callable[..., list[StatisticsFile]],
    expected: list[torch.Tensor],
    spec: BaseSpec,
    text: Path,
) -> None:
    """Killed before the first save, between the saves of two layers, and between the two finished files."""
    with child(spec, text, dies_at) as process:
        _, heard = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, heard.decode()
    assert same(build(), expected)
    assert left_behind(".partial") == []


@pytest.mark.slow
def test_two_processes_that_build_the_same_at_once_both_succeed(
    build: Callable[..., list[StatisticsFile]], expected: list[torch.Tensor], spec: BaseSpec, text: Path
) -> None:
    both = [child(spec, text, 0) for _ in range(2)]
    for process in both:
        _, heard = process.communicate(timeout=120)
        assert process.returncode == 0, heard.decode()
    assert same(build(), expected)
    assert len(left_behind()) == len(LAYERS)
