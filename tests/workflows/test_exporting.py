"""export: the active stack or the patches named, refused before a byte is written, checked in its own client."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_gguf
from exports import put_patches, readable, stack_of
from heard import Heard
from pico import save_pico
from random_patches import random_adapter, random_patch

from rompatch.errors import BaseMismatchError, ConflictError, GateError, OutputError, RequestError
from rompatch.export import clients
from rompatch.models import load_base
from rompatch.workflows.exporting import Exported
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store

OUT = {"peft": "adapter", "gguf": "adapter.gguf", "delta": "delta.safetensors"}
KINDS = list(OUT)


def export(store: Store, kind: str, out: str | Path | None = None, **options: Any) -> Exported:
    use_case: Callable[..., Exported] = getattr(store, f"export_{kind}")
    return use_case(out or OUT[kind], **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def stack(store: Store, spec: BaseSpec) -> list[str]:
    """Ids of three active patches at two layers."""
    return put_patches(store, spec, stack_of(store.base(spec), 3, (0, 2)))


@pytest.fixture
def gguf_store(store: Store, tmp_path: Path) -> Store:
    """A store whose base is a GGUF file, with two active patches."""
    spec = BaseSpec(str(save_gguf(tmp_path / "base.gguf")))
    patches = [random_patch(store.base(spec), seed, layer=seed) for seed in range(2)]
    put_patches(store, spec, [readable(patch) for patch in patches])
    return store


@pytest.mark.parametrize("kind", ["peft", "delta"])
def test_the_client_agrees_with_the_session(kind: str, store: Store, stack: list[str]) -> None:
    exported = export(store, kind, check=True)
    check = exported.checked
    assert check is not None
    assert (check.ran, check.passed) == (True, True)
    assert check.difference is not None
    assert check.difference < 1e-4
    assert [prompt.patch_id for prompt in check.prompts] == sorted(stack)
    assert all(prompt.session == pytest.approx(prompt.client, abs=1e-4) for prompt in check.prompts)
    exported.check_gate()


def test_llama_cpp_agrees_with_the_session(gguf_store: Store) -> None:
    check = export(gguf_store, "gguf", check=True).checked
    assert check is not None
    assert (check.ran, check.passed) == (True, True), check.reason
    assert check.client.startswith("xllamacpp 20")
    assert len(check.prompts) == 2


@pytest.mark.parametrize("kind", ["peft", "delta"])
def test_an_export_that_says_something_else_fails_its_check(kind: str, store: Store, stack: list[str]) -> None:
    exported = export(store, kind, check=True, max_rank=1)
    assert exported.checked is not None
    assert exported.checked.passed is False
    assert {site.rank for site in exported.report.sites} == {1}
    assert max(site.relative_error for site in exported.report.sites) > 0.01
    with pytest.raises(GateError, match="does not say what the session says"):
        exported.check_gate()


@pytest.mark.parametrize(("kind", "package"), [("peft", "peft"), ("gguf", "xllamacpp")])
def test_a_client_that_is_not_installed_is_named_and_nothing_fails(
    kind: str, package: str, store: Store, stack: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "installed", lambda name: None)
    exported = export(store, kind, check=True)
    assert exported.checked is not None
    assert not exported.checked.ran
    assert exported.checked.reason == f"not run: {package} is not installed (pip install {package})"
    exported.check_gate()


def test_llama_cpp_is_not_run_without_a_gguf_file_of_the_base(store: Store, stack: list[str]) -> None:
    check = export(store, "gguf", check=True).checked
    assert check is not None
    assert "--gguf FILE" in check.reason


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_patches_named_are_exported(kind: str, store: Store, stack: list[str]) -> None:
    exported = export(store, kind, patches=[stack[1]])
    assert [record.id for record in exported.patches] == [stack[1]]
    assert len(exported.report.sites) == 1
    assert (
        exported.report.size == sum(len(data) for data in tree(Path(OUT[kind])).values())
        if kind == "peft"
        else Path(OUT[kind]).stat().st_size
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_exists_is_refused_and_kept(kind: str, store: Store, stack: list[str], tmp_path: Path) -> None:
    out = tmp_path / OUT[kind]
    out.mkdir() if kind == "peft" else out.write_text("mine")
    (out / "notes.txt").write_text("mine") if kind == "peft" else None
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        export(store, kind)
    assert {name: data for name, data in tree(tmp_path).items() if "rompatch" not in name} == {
        name: data for name, data in before.items() if "rompatch" not in name
    }


@pytest.mark.parametrize("kind", KINDS)
def test_force_replaces_an_earlier_export(kind: str, store: Store, stack: list[str], tmp_path: Path) -> None:
    export(store, kind, patches=stack[:1])
    export(store, kind, force=True)
    forced = tree(tmp_path / OUT[kind]) if kind == "peft" else (tmp_path / OUT[kind]).read_bytes()
    export(store, kind, "again")
    again = tree(tmp_path / "again") if kind == "peft" else (tmp_path / "again").read_bytes()
    assert forced == again
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".") and path.name != ".rompatch"] == []


@pytest.mark.parametrize("kind", ["gguf", "delta"])
def test_force_replaces_no_file_that_is_not_an_earlier_export(
    kind: str, store: Store, stack: list[str], tmp_path: Path
) -> None:
    (tmp_path / OUT[kind]).write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export(store, kind, force=True)
    assert (tmp_path / OUT[kind]).read_text() == "mine"


def test_a_gguf_file_of_another_architecture_is_refused(store: Store, stack: list[str], tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(OutputError, match="another architecture"):
        export(store, "gguf", check=True, gguf=tmp_path / "other.gguf")


def test_force_deletes_no_folder_that_is_not_an_earlier_export(store: Store, stack: list[str], tmp_path: Path) -> None:
    export(store, "peft")
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export(store, "peft", force=True)
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_inside_the_base_is_refused(kind: str, store: Store, stack: list[str], saved_base: Path) -> None:
    before = tree(saved_base)
    with pytest.raises(OutputError, match="inside the base"):
        export(store, kind, saved_base / "sub" / OUT[kind])
    assert tree(saved_base) == before


@pytest.mark.parametrize("kind", KINDS)
def test_no_active_patch_is_refused(kind: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="nothing to export") as caught:
        export(store, kind)
    assert "Apply a patch" in str(caught.value)
    assert not (tmp_path / OUT[kind]).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused(kind: str, store: Store, stack: list[str], tmp_path: Path) -> None:
    other = save_pico(tmp_path / "other", seed=1)
    with pytest.raises(BaseMismatchError, match="differs from that of other"):
        export(store, kind, model=str(other))
    assert not (tmp_path / OUT[kind]).exists()


def test_a_rank_below_one_is_refused(store: Store, stack: list[str]) -> None:
    with pytest.raises(RequestError, match="at least one column"):
        export(store, "peft", max_rank=0)


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing(kind: str, store: Store, stack: list[str], tmp_path: Path) -> None:
    import resource

    store.base(store.spec_for(store.active()))  # in memory already
    target = tmp_path / "disk"
    target.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OutputError, match="could not be written") as caught:
            export(store, kind, target / OUT[kind])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Make room" in str(caught.value)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_leaves_nothing(
    kind: str, store: Store, stack: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    target = tmp_path / "disk"
    target.mkdir()
    with pytest.raises(KeyboardInterrupt):
        export(store, kind, target / OUT[kind])
    assert list(target.iterdir()) == []


def test_a_base_that_llama_cpp_does_not_know_is_refused(store: Store, tmp_path: Path) -> None:
    spec = BaseSpec(str(save_pico(tmp_path / "neo", "gpt_neo")))
    put_patches(store, spec, stack_of(load_base(spec.model), 1))
    with pytest.raises(OutputError, match="no architecture for models of type 'gpt_neo'"):
        export(store, "gguf")
    assert not (tmp_path / OUT["gguf"]).exists()


def test_the_adapter_calls_its_base_as_the_store_knows_it(store: Store, stack: list[str], spec: BaseSpec) -> None:
    import json

    export(store, "peft")
    assert json.loads(Path("adapter/adapter_config.json").read_text())["base_model_name_or_path"] == spec.model
    export(store, "peft", base_name="my-org/my-model", force=True)
    assert json.loads(Path("adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "my-org/my-model"


def test_a_patch_in_half_precision_is_exported_in_float32(store: Store, spec: BaseSpec, heard: Heard) -> None:
    half = BaseSpec(spec.model, dtype="bfloat16")
    put_patches(store, half, stack_of(store.base(half), 2))
    check = export(store, "peft", check=True).checked
    assert check is not None
    assert check.passed
    assert check.tolerance == 0.05
    assert any("comparing peft" in note for note in heard.notes)


def test_the_base_is_not_touched(store: Store, stack: list[str], saved_base: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_base, tmp_path / "copy")
    for kind in KINDS:
        export(store, kind, check=kind != "gguf")
    assert tree(saved_base) == tree(tmp_path / "copy")


@pytest.mark.parametrize("kind", ["peft", "delta"])
def test_adapters_are_exported_with_the_patches_beside_them(kind: str, store: Store, spec: BaseSpec) -> None:
    base = store.base(spec)
    put_patches(store, spec, [random_adapter(base, 1), random_patch(base, 2)])
    exported = export(store, kind, check=True)
    assert exported.checked is not None
    assert exported.checked.passed
    assert len(exported.checked.prompts) == 1
    assert [site.rank for site in exported.report.sites] == [4]


def test_adapters_alone_have_no_prompts_to_check(store: Store, spec: BaseSpec) -> None:
    put_patches(store, spec, [random_adapter(store.base(spec), 1)])
    exported = export(store, "peft", check=True)
    assert exported.checked is not None
    assert exported.checked.passed is None
    assert "no prompts" in exported.checked.reason
    exported.check_gate()
