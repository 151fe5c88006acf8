from __future__ import annotations

from pathlib import Path

import pytest
from tiny_patches import tiny_patch

from rompatch.errors import OutputError, PatchFileError, StoreError
from rompatch.store.blobs import Blobs
from rompatch.store.location import create_store, find_store, patches_path


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)


def test_a_store_is_found_upward_like_git(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_store(None, deep) is None
    outer = create_store(tmp_path / ".rompatch")
    assert find_store(None, deep) == outer
    inner = create_store(tmp_path / "a" / ".rompatch")
    assert find_store(None, deep) == inner
    assert find_store(None, tmp_path) == outer


def test_a_named_store_comes_before_a_found_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_store(tmp_path / ".rompatch")
    monkeypatch.setenv("ROMPATCH_STORE", str(tmp_path / "named"))
    assert find_store(None, tmp_path) == tmp_path / "named"
    assert find_store(tmp_path / "explicit", tmp_path) == tmp_path / "explicit"
    monkeypatch.setenv("ROMPATCH_STORE", "")
    assert find_store(None, tmp_path) == tmp_path / ".rompatch"


def test_a_store_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="--store"):
        create_store(tmp_path / "file" / ".rompatch")


def test_creating_a_store_twice_keeps_it(store: Path, blobs: Blobs) -> None:
    blobs.put(tiny_patch())
    assert patches_path(create_store(store)) == blobs.folder
    assert blobs.ids() == (tiny_patch().id,)


def test_a_patch_file_is_put_got_and_removed(blobs: Blobs) -> None:
    patch = tiny_patch()
    path = blobs.put(patch)
    assert path == blobs.put(patch) == blobs.path(patch.id)
    assert path.name == f"{patch.id}.safetensors"
    assert blobs.get(patch.id) == patch
    assert blobs.remove(patch.id)
    assert not blobs.remove(patch.id)
    with pytest.raises(StoreError, match="fsck"):
        blobs.get(patch.id)


def test_a_file_under_a_wrong_name_is_refused(blobs: Blobs) -> None:
    blobs.put(tiny_patch(seed=1)).rename(blobs.path(tiny_patch(seed=2).id))
    with pytest.raises(PatchFileError, match="another patch"):
        blobs.get(tiny_patch(seed=2).id)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_not_an_id_never_becomes_a_path(blobs: Blobs, name: str) -> None:
    for verb in (blobs.path, blobs.get, blobs.remove):
        with pytest.raises(StoreError, match="not a patch id"):
            verb(name)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        Blobs(tmp_path / "file" / "patches").put(tiny_patch())


def test_the_listing_tells_patches_temporaries_and_strangers_apart(blobs: Blobs) -> None:
    patch = tiny_patch()
    path = blobs.put(patch)
    temporary = path.with_name(f".{path.name}.0a1b2c3d.tmp")
    temporary.touch()
    stranger = path.with_name("notes.txt")
    stranger.touch()
    assert blobs.ids() == (patch.id,)
    assert blobs.temporaries() == (temporary,)
    assert blobs.strangers() == (stranger,)
    assert Blobs(blobs.folder / "missing").ids() == ()
