"""--precision auto: measured once, remembered, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from heard import Heard
from pico import pico_base

from rompatch.compute import precision as products
from rompatch.errors import RequestError
from rompatch.workflows.precision import resolve_precision, wanted_precision


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("half", "chosen"), [(0.5, "bfloat16"), (0.9, "float32"), (5.0, "float32")])
def test_auto_takes_the_faster_one_and_remembers_it(
    half: float, chosen: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, heard = pico_base("llama"), Heard()
    monkeypatch.setattr(products, "measure_products", lambda *_: {"float32": 1.0, "bfloat16": half})
    assert resolve_precision(base, base.site(1), "auto", heard) == chosen
    monkeypatch.setattr(products, "measure_products", lambda *_: {"float32": 1.0, "bfloat16": 1 / half})
    assert resolve_precision(base, base.site(1), "auto", heard) == chosen, "the same on a busier day"
    assert len(heard.notes) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"cpu": "float64"}', "\x00"])
def test_a_damaged_memory_is_measured_again(text: str, cache: Path) -> None:
    cache.mkdir()
    (cache / "precision.json").write_text(text, encoding="utf-8")
    base = pico_base("llama")
    found = resolve_precision(base, base.site(1), "auto", Heard())
    assert found in ("float32", "bfloat16")
    assert found == resolve_precision(base, base.site(1), "auto", Heard())


def test_a_half_precision_base_keeps_its_own(cache: Path) -> None:
    base = pico_base("llama", dtype=torch.bfloat16)
    assert resolve_precision(base, base.site(1), "auto", Heard()) == "bfloat16"
    assert not cache.exists(), "nothing was measured"


def test_a_device_that_cannot_is_refused_before_any_work(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("addmm_impl_cpu_ not implemented for 'BFloat16'\nmore")

    base = pico_base("llama")
    monkeypatch.setattr(products, "measure_products", refuse)
    with pytest.raises(RequestError, match=r"cpu does not multiply in bfloat16.*--precision float32"):
        resolve_precision(base, base.site(1), "bfloat16", Heard())


def test_auto_on_a_device_without_bfloat16_is_float32(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TypeError("BFloat16 is not supported")

    base = pico_base("llama")
    monkeypatch.setattr(products, "measure_products", refuse)
    assert resolve_precision(base, base.site(1), "auto", Heard()) == "float32"


def test_a_cache_that_cannot_be_written_is_a_note(cache: Path) -> None:
    cache.write_text("a file in the place of the folder", encoding="utf-8")
    base, heard = pico_base("llama"), Heard()
    assert resolve_precision(base, base.site(1), "auto", heard) in ("float32", "bfloat16")
    assert "cannot be remembered" in heard.notes[-1]


@pytest.mark.parametrize(
    ("option", "hparams", "wanted"),
    [
        ("auto", {}, "auto"),
        ("auto", {"precision": "bfloat16"}, "bfloat16"),
        ("float32", {"precision": "bfloat16"}, "float32"),
    ],
)
def test_the_option_wins_over_the_preset(option: str, hparams: dict[str, str], wanted: str) -> None:
    assert wanted_precision(option, hparams) == wanted
