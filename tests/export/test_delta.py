"""The delta file: what the page says it is, and the page's own ten lines apply it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import IDS, deltas_of, origin_of, session_logits, stack_of
from pico import pico_base, save_pico
from safetensors import safe_open

import rompatch
from rompatch.export.clients import ask_delta, next_tokens
from rompatch.export.delta import export_delta
from rompatch.models import load_base
from rompatch.patch import Patch
from rompatch.sites import tensor_sha256

PAGE = (Path(rompatch.__file__).resolve().parents[1] / "docs" / "delta-format.md").read_text(encoding="utf-8")


def export(patches: Sequence[Patch], out: Path, **options: Any) -> Path:
    return export_delta(deltas_of(patches), origin_of(patches), out, base_folder=None, **options).path


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_ten_lines_of_the_page_apply_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pico(tmp_path / "my-model", kind)
    base = load_base(str(folder))
    patches = stack_of(base, 7, (0, 1, 2))
    export(patches, tmp_path / "facts.safetensors")
    (code,) = re.findall(r"```python run\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/delta-format.md", "exec"), names)  # noqa: S102 - our own page
    with torch.inference_mode():
        found = names["model"](IDS).logits
    assert (found - session_logits(base, patches)).abs().max() < 1e-4


def test_the_file_is_what_the_page_says(tmp_path: Path) -> None:
    base = pico_base("gpt2")
    patches = stack_of(base, 7, (0, 1, 1))
    with safe_open(export(patches, tmp_path / "out"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        record = json.loads(file.metadata()["rompatch_export"])
    assert record.keys() == {"rompatch_export", "kind", "base", "patches", "sites"}
    assert (record["rompatch_export"], record["kind"]) == (1, "delta")
    assert all(f"`{key}`" in PAGE for key in [*record, *record["sites"][0], *record["base"]])
    for site in record["sites"]:
        left, right = (tensors.pop(f"{site['parameter']}.{part}") for part in ("left", "right"))
        assert (left.shape[0], right.shape[1]) == (site["d_out"], site["d_in"])
        assert left.shape[1] == right.shape[0]
        assert site["transposed"]
        assert site["sha256"] == base.site(site["layer"]).ref().sha256
    assert not tensors


def test_equal_stacks_give_equal_bytes(tmp_path: Path) -> None:
    patches = stack_of(pico_base(), 6, (0, 1, 2))
    one, other = (export(order, tmp_path / str(n)) for n, order in enumerate((patches, patches[::-1])))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_checking_says_what_the_session_says_and_leaves_the_base_alone(kind: str, tmp_path: Path) -> None:
    base = pico_base(kind)
    patches = stack_of(base, 5, (0, 2))
    before = {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}
    (answer,) = ask_delta(base.model, export(patches, tmp_path / "out"), [IDS[0].tolist()])
    wanted = session_logits(base, patches)[0, -1].softmax(-1)
    assert (torch.tensor(list(answer.values())) - wanted).abs().max() < 1e-5
    assert (next_tokens(base.model, [IDS[0].tolist()])[0] - wanted).abs().max() > 1e-3
    assert {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()} == before
