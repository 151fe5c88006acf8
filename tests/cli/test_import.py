"""``import peft``: an adapter becomes a patch that goes wherever patches go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_folders import DOWN, key, save_adapter, tensors
from calling import Run, contents, read
from safetensors.torch import load_file

SUITE = {
    "rompatch_suite": 1,
    "name": "style",
    "source": "mine",
    "prompts": [{"kind": "rewrite", "text": "Big Ben is in", "target_new": "Paris", "target_true": "London"}],
}


@pytest.fixture
def adapter(run: Run, pico_folder: Path, place: Path) -> str:
    folder = save_adapter(place / "lora")
    return str(read(run("import", "peft", folder, "--name", "style", "--model", pico_folder, "--json"))["id"])


def test_it_says_what_it_did_and_how_it_stacks(run: Run, pico_folder: Path, place: Path) -> None:
    result = run("import", "peft", save_adapter(place / "my-lora"), "--model", pico_folder)
    assert "title     my-lora" in result.stdout
    assert "2 weights, rank 4" in result.stdout
    assert "no keys" in result.stdout
    assert "a name is no evidence" in result.stderr
    again = run("import", "peft", place / "my-lora", "--model", pico_folder)
    assert again.stdout.startswith("exists")


def test_it_is_applied_generated_with_verified_baked_and_bundled(
    run: Run, adapter: str, pico_folder: Path, place: Path
) -> None:
    assert "has no keys" in run("apply", "style").stderr
    texts = read(run("generate", "Rome", "--compare", "--max-new-tokens", 4, "--json"))["continuations"][0]
    assert texts["base"] != texts["edited"]
    (place / "suite.json").write_text(json.dumps(SUITE))
    assert read(run("verify", "style", "--suite", "suite.json", "--json"))["id"] == adapter
    assert read(run("verify", "--stack", "--no-drift", "--json", code=3))["patches"][0]["target_new"] is None
    run("bake", "out")
    assert "| style |" in (place / "out" / "README.md").read_text()
    name, weights = f"{DOWN}.weight", tensors()
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (pico_folder, place / "out"))
    torch.testing.assert_close(after - before, 2 * weights[key(DOWN, "B")] @ weights[key(DOWN, "A")], atol=1e-6, rtol=0)
    run("bundle", "export", "-o", "b")
    run("bundle", "import", "b", "--store", "other")
    assert "style" in run("list", "--store", "other").stdout


def test_a_bad_adapter_leaves_the_store_as_it_was(run: Run, adapter: str, place: Path) -> None:
    before = contents(place / ".rompatch")
    result = run("import", "peft", save_adapter(place / "dora", use_dora=True), code=1)
    assert "DoRA" in result.stderr
    assert "next:" in result.stderr
    run("import", "peft", place / "nothing", code=1)
    run("import", "peft", save_adapter(place / "big", tensors(modules={DOWN: (64, 80)})), code=1)
    assert contents(place / ".rompatch") == before
