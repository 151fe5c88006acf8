"""export check: an export is read back, trusted in nothing, and run against the session of the patches it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import save_gguf
from exports import put_patches, readable, stack_of
from safetensors.torch import load_file, save_file

from rompatch.errors import GateError, OutputError, PatchNotFoundError
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store


@pytest.fixture
def adapter(store: Store, spec: BaseSpec) -> Path:
    """A PEFT adapter of two active patches."""
    put_patches(store, spec, stack_of(store.base(spec), 2))
    return store.export_peft("adapter").report.path


def test_an_export_agrees_with_the_session_of_its_own_patches_whatever_is_active(store: Store, adapter: Path) -> None:
    store.export_delta("delta.safetensors")
    store.revert()
    for path, kind in ((adapter, "peft"), (Path("delta.safetensors"), "delta")):
        found = store.check_export(path)
        assert found.export.kind == kind
        assert found.checked.passed is True
        assert len(found.checked.prompts) == 2
        found.check_gate()


def test_a_gguf_adapter_agrees_and_takes_a_named_gguf_file(store: Store, tmp_path: Path) -> None:
    spec = BaseSpec(str(save_gguf(tmp_path / "base.gguf")))
    put_patches(store, spec, [readable(patch) for patch in stack_of(store.base(spec), 2, (1, 2))])
    store.export_gguf("adapter.gguf")
    assert store.check_export("adapter.gguf").checked.passed is True
    (tmp_path / "copy.gguf").write_bytes((tmp_path / "base.gguf").read_bytes())
    assert store.check_export("adapter.gguf", gguf="copy.gguf").checked.passed is True
    other = store.check_export("adapter.gguf", gguf=save_gguf(tmp_path / "other.gguf", seed=1))
    with pytest.raises(GateError):
        other.check_gate()


def test_an_adapter_that_was_changed_fails(store: Store, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    save_file({name: 1.5 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    found = store.check_export(adapter)
    assert found.checked.passed is False
    with pytest.raises(GateError, match="does not say what the session says"):
        found.check_gate()


def test_an_adapter_whose_names_fit_nothing_fails(store: Store, adapter: Path) -> None:
    """PEFT itself only warns."""
    weights = adapter / "adapter_model.safetensors"
    renamed = {name.replace("layers.1", "layers.7"): tensor for name, tensor in load_file(weights).items()}
    save_file(renamed, weights, {"format": "pt"})
    assert store.check_export(adapter).checked.passed is False


def test_patches_that_are_not_in_the_store_are_named(store: Store, adapter: Path) -> None:
    record = json.loads((adapter / "rompatch_export.json").read_text())
    record["patches"] = ["0" * 64]
    (adapter / "rompatch_export.json").write_text(json.dumps(record))
    with pytest.raises(PatchNotFoundError):
        store.check_export(adapter)


RECORDS = {
    "no JSON": "{",
    "no object": "[1]",
    "another version": '{"rompatch_export": 2, "kind": "peft", "patches": ["' + "0" * 64 + '"]}',
    "no patches": '{"rompatch_export": 1, "kind": "peft", "patches": []}',
    "a path for a patch": '{"rompatch_export": 1, "kind": "peft", "patches": ["../../etc"]}',
    "another kind": '{"rompatch_export": 1, "kind": "pickle", "patches": ["' + "0" * 64 + '"]}',
    "deep nesting": "[" * 100_000,
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_hostile_record_is_refused(what: str, store: Store, adapter: Path) -> None:
    (adapter / "rompatch_export.json").write_text(RECORDS[what])
    with pytest.raises(OutputError, match="no export that can be checked"):
        store.check_export(adapter)


@pytest.mark.parametrize("what", ["missing", "folder", "text", "other safetensors", "gguf model", "broken gguf"])
def test_what_is_no_export_is_refused(what: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("hello")
    elif what == "other safetensors":
        save_file({"a": torch.zeros(1)}, path)
    elif what == "gguf model":
        save_gguf(path)
    elif what == "broken gguf":
        path.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 40)
    with pytest.raises(OutputError, match="no export that can be checked"):
        store.check_export(path)
