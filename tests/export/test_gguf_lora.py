"""The GGUF adapter: llama.cpp itself says with it what the session says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import save_gguf
from exports import deltas_of, origin_of, stack_of
from pico import SIZES, pico_base

from rompatch.apply.session import PatchedModel
from rompatch.errors import OutputError
from rompatch.export.check import largest_difference
from rompatch.export.clients import ask_llama, next_tokens
from rompatch.export.gguf_lora import export_gguf_lora
from rompatch.export.gguf_names import ARCHITECTURES, architecture_of, check_architecture, tensor_names
from rompatch.models import Base, load_base
from rompatch.patch import Patch

PROMPTS = ([0, 4, 5, 6], [0, 31, 30, 7, 8, 9], [0, 11])


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf")


@pytest.fixture(scope="module")
def base(base_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The base in it, dequantised once. Tests leave it as they found it."""
    with pytest.MonkeyPatch.context() as surroundings:
        surroundings.setenv("ROMPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_base(str(base_file))


def export(base: Base, patches: Sequence[Patch], out: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {"architecture": "llama", "n_layers": base.n_layers, "base_folder": None, **options}
    return export_gguf_lora(deltas_of(patches), origin_of(patches), out, **settings).path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("n", "layers"), [(1, (2,)), (20, (1,)), (6, (0, 1, 1, 2, 2, 2))])
def test_llama_cpp_says_what_the_session_says(
    n: int, layers: tuple[int, ...], dtype: str, base: Base, base_file: Path, tmp_path: Path
) -> None:
    patches = stack_of(base, n, layers)
    plain = next_tokens(base.model, PROMPTS)
    with PatchedModel(base) as patched:
        patched.activate(patches)
        session = next_tokens(base.model, PROMPTS)
    answers = ask_llama(base_file, export(base, patches, tmp_path / "a.gguf", dtype=dtype), PROMPTS)
    off, moved = (max(map(largest_difference, rows, answers)) for rows in (session, plain))
    assert off < 0.005
    assert moved > 0.05


def test_llama_cpp_with_no_adapter_says_what_the_base_says(base: Base, base_file: Path) -> None:
    for ours, theirs in zip(next_tokens(base.model, PROMPTS), ask_llama(base_file, None, PROMPTS), strict=True):
        assert len(theirs) == base.model.config.vocab_size
        assert sum(theirs.values()) == pytest.approx(1, abs=1e-3)
        assert largest_difference(ours, theirs) < 0.005


def test_alpha_over_rank_times_b_a_is_the_update_for_every_rank(base: Base, tmp_path: Path) -> None:
    deltas = deltas_of(stack_of(base, 6, (0, 1, 1, 2, 2, 2)))
    assert len({delta.rank for delta in deltas}) > 1
    reader = gguf.GGUFReader(export(base, stack_of(base, 6, (0, 1, 1, 2, 2, 2)), tmp_path / "a.gguf"))
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: np.asarray(tensor.data, dtype=np.float64) for tensor in reader.tensors}
    assert len(tensors) == 2 * len(deltas)
    for delta in deltas:
        name = f"blk.{delta.ref.layer}.ffn_down.weight"
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        np.testing.assert_allclose(alpha / len(a) * b @ a, delta.update.dense(), rtol=1e-4, atol=1e-5)


def test_the_metadata_is_what_llama_cpp_asks_for(base: Base, tmp_path: Path) -> None:
    patches = stack_of(base, 2)
    fields = gguf.GGUFReader(export(base, patches, tmp_path / "a.gguf")).fields
    said = {name: fields[name].contents() for name in ("general.architecture", "general.type", "adapter.type")}
    assert said == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    assert json.loads(fields["rompatch.export"].contents())["patches"] == sorted(patch.id for patch in patches)


def test_equal_stacks_give_equal_bytes(base: Base, tmp_path: Path) -> None:
    patches = stack_of(base, 6, (0, 1, 2))
    one, other = (export(base, order, tmp_path / f"{n}.gguf") for n, order in enumerate((patches, patches[::-1])))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", SIZES)
def test_a_base_has_a_name_for_its_weight_or_is_refused(kind: str) -> None:
    base = pico_base(kind)
    deltas = deltas_of(stack_of(base, 1))
    if kind in ("gpt_neo", "gptj", "opt"):
        with pytest.raises(OutputError, match="no architecture") as caught:
            architecture_of(kind)
        assert "rompatch export peft" in str(caught.value)
    else:
        names = tensor_names(deltas, architecture_of(kind), base.n_layers)
        assert names == {deltas[0].ref.parameter: "blk.1.ffn_down.weight"}


def test_every_architecture_is_one_that_gguf_knows() -> None:
    assert set(ARCHITECTURES.values()) <= set(gguf.MODEL_ARCH_NAMES.values())


def test_a_weight_that_llama_cpp_has_no_tensor_for_is_refused() -> None:
    (delta,) = deltas_of(stack_of(pico_base(), 1))
    expert = replace(delta, ref=replace(delta.ref, parameter="model.layers.1.mlp.experts.3.down_proj.weight"))
    with pytest.raises(OutputError, match=re.escape("no tensor for model.layers.1.mlp.experts.3.down_proj.weight")):
        tensor_names([expert], "llama", 3)


def test_another_dtype_is_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="bfloat16"):
        export(base, stack_of(base, 1), tmp_path / "a.gguf", dtype="bfloat16")
    assert list(tmp_path.glob("*.gguf")) == []


def test_a_gguf_file_of_another_architecture_is_refused() -> None:
    check_architecture("llama", "llama", Path("a.gguf"))
    with pytest.raises(OutputError, match="another architecture"):
        check_architecture("gemma3", "llama", Path("a.gguf"))


def test_a_file_that_llama_cpp_does_not_load_is_an_error_and_no_crash(base_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(base_file.read_bytes()[:3000])
    with pytest.raises(OutputError, match="does not load"):
        ask_llama(broken, None, PROMPTS)
