"""export gguf-model: where the base is a GGUF file, the same file with the stack in it."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import save_gguf
from exports import put_patches, readable, stack_of

from rompatch.errors import BaseMismatchError, ConflictError, OutputError
from rompatch.export.gguf_model import encoded, write_gguf_model
from rompatch.sites import tensor_sha256
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A GGUF base whose down-projections are quantised, as a base's are."""
    plain = save_gguf(tmp_path / "plain.gguf")
    weights = {t.name: t.data.astype(np.float32) for t in gguf.GGUFReader(plain).tensors if "ffn_down" in t.name}
    out = tmp_path / "base.gguf"
    write_gguf_model(plain, out, {n: encoded(w, "q8_0") for n, w in weights.items()}, "q8_0", base_folder=None)
    return out


@pytest.fixture
def gguf_store(store: Store, source: Path) -> Store:
    """A store on it with three active patches at two layers."""
    spec = BaseSpec(str(source))
    put_patches(store, spec, [readable(patch) for patch in stack_of(store.base(spec), 3, (0, 2))])
    return store


@pytest.mark.parametrize("dtype", ["float16", "q8_0", "float32"])
def test_llama_cpp_says_with_it_what_the_session_says(dtype: str, gguf_store: Store) -> None:
    exported = gguf_store.export_gguf_model("edited.gguf", dtype=dtype, check=True)
    check = exported.checked
    assert check is not None
    assert (check.ran, check.passed) == (True, True), check
    assert [site.stored_as for site in exported.report.sites] == ["blk.0.ffn_down.weight", "blk.2.ffn_down.weight"]
    bound = {"float16": 1e-2, "q8_0": 0.2, "float32": 0.0}[dtype]
    assert all(site.relative_error <= bound for site in exported.report.sites)


def test_the_edited_tensors_are_those_of_the_session_and_the_others_the_base_s(gguf_store: Store, source: Path) -> None:
    gguf_store.export_gguf_model("edited.gguf", dtype="float32")
    with gguf_store.session() as model:
        session = {n: model.get_parameter(f"model.layers.{n}.mlp.down_proj.weight").numpy() for n in (0, 2)}
    before, after = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (source, Path("edited.gguf"))
    )
    for name, tensor in after.items():
        layer = {"blk.0.ffn_down.weight": 0, "blk.2.ffn_down.weight": 2}.get(name)
        if layer is None:
            assert tensor.data.tobytes() == before[name].data.tobytes()
            assert tensor.tensor_type == before[name].tensor_type
        else:
            assert np.array_equal(tensor.data, session[layer])


def test_equal_stacks_give_equal_bytes_and_the_base_is_not_touched(gguf_store: Store, source: Path) -> None:
    before = source.read_bytes()
    for name in ("one.gguf", "other.gguf"):
        gguf_store.export_gguf_model(name)
    assert Path("one.gguf").read_bytes() == Path("other.gguf").read_bytes()
    assert source.read_bytes() == before


def test_the_base_s_own_file_is_never_the_output(gguf_store: Store, source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        gguf_store.export_gguf_model(source, force=True)
    assert source.read_bytes() == before


def test_another_base_gets_advice(store: Store, spec: BaseSpec) -> None:
    put_patches(store, spec, stack_of(store.base(spec), 1))
    with pytest.raises(OutputError, match="is no GGUF file") as caught:
        store.export_gguf_model("edited.gguf")
    assert "rompatch bake" in str(caught.value)
    assert "convert_hf_to_gguf.py" in str(caught.value)
    assert not Path("edited.gguf").exists()


def test_another_file_s_tensor_is_refused(gguf_store: Store, source: Path, tmp_path: Path) -> None:
    other = save_gguf(tmp_path / "other.gguf", seed=1)
    with pytest.raises(BaseMismatchError, match="differs from that of"):
        gguf_store.export_gguf_model("edited.gguf", model=str(other))
    assert not Path("edited.gguf").exists()


def test_a_file_that_changed_since_it_was_loaded_is_refused(gguf_store: Store, source: Path) -> None:
    gguf_store.base(gguf_store.spec_for(gguf_store.active()))
    save_gguf(source, seed=1)
    with pytest.raises(BaseMismatchError, match="is not the one"):
        gguf_store.export_gguf_model("edited.gguf")
    assert not Path("edited.gguf").exists()


def test_no_patch_and_no_such_type_are_refused(gguf_store: Store) -> None:
    with pytest.raises(OutputError, match="not kept in q4_0"):
        gguf_store.export_gguf_model("edited.gguf", dtype="q4_0")
    gguf_store.revert()
    with pytest.raises(ConflictError, match="nothing to export"):
        gguf_store.export_gguf_model("edited.gguf")


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_leaves_nothing(gguf_store: Store, tmp_path: Path) -> None:
    import resource

    gguf_store.base(gguf_store.spec_for(gguf_store.active()))
    target = tmp_path / "disk"
    target.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OutputError, match="could not be written"):
            gguf_store.export_gguf_model(target / "edited.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(target.iterdir()) == []


def test_the_live_base_is_as_it_was(gguf_store: Store) -> None:
    base = gguf_store.base(gguf_store.spec_for(gguf_store.active()))
    before = {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}
    gguf_store.export_gguf_model("edited.gguf")
    assert {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()} == before
