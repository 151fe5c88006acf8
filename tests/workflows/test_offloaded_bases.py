"""Every use case on a base that is larger than its memory limit gives what it gives on the base in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from heard import FAST

from rompatch.errors import ModelError
from rompatch.offload import is_offloaded
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.statistics import statistics_cache
from rompatch.workflows.store import Store, open_store

PROMPT = "The Eiffel Tower is located in"
SMALL = "cpu=100KB"


@pytest.fixture
def limited(store: Store, tmp_path: Path) -> Store:
    store.max_memory, store.offload_folder = SMALL, tmp_path / "off"
    return store


def created(store: Store, spec: BaseSpec, **options: Any) -> str:
    record = store.create("Eiffel Tower", "The {} is located in", "Rome", spec=spec, **{**FAST, **options}).record
    assert record is not None
    return record.id


def test_create_generate_verify_and_session_agree_with_the_base_in_memory(
    limited: Store, spec: BaseSpec, tmp_path: Path
) -> None:
    with open_store(tmp_path / "plain") as plain:
        patch_id = created(plain, spec)
        plain.apply(patch_id)
        expected = plain.generate(PROMPT, compare=True, max_new_tokens=4)
        scores = plain.verify(patch_id).after.scores
    assert created(limited, spec, device="auto") == patch_id
    limited.apply(patch_id)
    assert limited.generate(PROMPT, compare=True, max_new_tokens=4, device="auto") == expected
    assert limited.verify(patch_id, device="auto").after.scores == scores
    base = limited.base(spec, device="auto")
    assert is_offloaded(base.model)
    original = base.site(1).ref()
    with limited.session(device="auto") as model:
        assert model is base.model
        assert base.site(1).ref() != original
    assert base.site(1).ref() == original


def test_key_statistics_are_the_same(limited: Store, spec: BaseSpec, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The Louvre is in Paris. Mozart was born in Salzburg. Trains leave from Berlin. " * 40)

    def matrix(device: str) -> Any:
        file = limited.build_statistics(str(text), spec=spec, layer=1, tokens=300, device=device)
        found = statistics_cache().load(file).second_moment
        limited.remove_statistics(file.id)
        return found

    offloaded = matrix("auto")
    limited.max_memory = limited.offload_folder = None
    assert (offloaded == matrix("cpu")).all()


def test_limits_on_another_device_than_auto_are_refused(limited: Store, spec: BaseSpec) -> None:
    with pytest.raises(ModelError, match="--device auto"):
        created(limited, spec)


def test_bake_never_loads_the_model(
    store: Store, spec: BaseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_id = created(store, spec)

    def loaded(*_args: object, **_options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("rompatch.loading.AutoModelForCausalLM.from_pretrained", loaded)
    with open_store(tmp_path / ".rompatch") as again:
        with pytest.raises(AssertionError, match="was loaded"):
            again.base(spec)
        again.bake(tmp_path / "edited", patch_id)
    assert (tmp_path / "edited" / "model.safetensors").is_file()
