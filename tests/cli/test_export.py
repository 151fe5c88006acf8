"""The commands of export: what they print, and exit code 3 where a check fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import Run


def test_what_is_printed(run: Run, made: str, place: Path) -> None:
    run("apply", made)
    result = run("export", "peft", "lora", "--check")
    assert "exported 1 patch to lora: peft, float32" in result.stdout
    assert "mlp.down_proj: rank 1, relative error" in result.stdout
    assert "agrees with the session" in result.stdout
    assert "vLLM: --max-lora-rank 1" in result.stderr
    assert "agrees with the session" in run("export", "check", "lora").stdout
    assert "not run: llama.cpp needs a GGUF file" in run("export", "gguf", "a.gguf", "--check").stdout
    run("export", "delta", "d.safetensors", "--patch", made)
    assert {path.name for path in place.iterdir()} == {".rompatch", "lora", "a.gguf", "d.safetensors"}


def test_a_failed_check_ends_with_3_and_the_results_are_printed(
    run: Run, made: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("apply", made)
    monkeypatch.setattr("rompatch.export.check.TOLERANCES", {"float32": -1.0})
    result = run("export", "delta", "d.safetensors", "--check", code=3)
    assert "differs from the session" in result.stdout
    assert "error: " in result.stderr
    run("export", "check", "d.safetensors", code=3)


@pytest.mark.parametrize("kind", ["peft", "gguf", "gguf-model", "delta"])
def test_nothing_active_is_a_clear_error(kind: str, run: Run, made: str, place: Path) -> None:
    result = run("export", kind, "out", code=1)
    assert "nothing to export" in result.stderr
    assert not (place / "out").exists()


@pytest.mark.parametrize("arguments", [("peft", "out", "--max-rank", "0"), ("gguf", "out", "--dtype", "bfloat16")])
def test_settings_out_of_range_are_usage_errors(arguments: tuple[str, ...], run: Run, made: str) -> None:
    run("export", *arguments, code=2)
