"""Bake: folder in, folder out; only the edited tensors' bytes differ; whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rompatch.apply import bake as bake_module
from rompatch.apply.bake import Rewritten, bake_folder
from rompatch.apply.checkpoint import match_name, stored_tensors
from rompatch.errors import BaseMismatchError, ModelError, OutputError, SiteError
from rompatch.sites import tensor_sha256

SITE = "model.layers.1.mlp.down_proj.weight"
OTHER_SITE = "model.layers.2.mlp.down_proj.weight"
CARD = "# tiny, edited\n"
MANIFEST = {"patches": ["a1b2c3"]}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of last change."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def bake(base: Path, out: Path, *names: str, **replaced: torch.Tensor) -> Path:
    """Bake with every named tensor negated."""
    tensors = load_all(base)
    replacements = {name: replaced.get("tensor", -tensors[name]) for name in names or (SITE,)}
    expected = {name: tensor_sha256(tensors[name]) for name in replacements}
    return bake_folder(base, out, replacements, card=CARD, manifest=MANIFEST, expected_sha256=expected).folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """One file of weights."""
    return save_checkpoint(tmp_path / "base")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A dozen files of weights and an index."""
    folder = save_checkpoint(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 5
    return folder


@pytest.mark.parametrize("kind", ["base", "sharded"])
def test_only_the_edited_tensors_differ(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    before = load_all(folder)
    after = load_all(bake(folder, tmp_path / "out", SITE, OTHER_SITE))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        wanted = -tensor if name in (SITE, OTHER_SITE) else tensor
        assert tensor_sha256(after[name]) == tensor_sha256(wanted), name


@pytest.mark.parametrize("kind", ["base", "sharded"])
def test_every_byte_outside_the_edited_tensors_is_the_bases(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    place = stored_tensors(folder)[SITE]
    old, new = contents(folder), contents(bake(folder, tmp_path / "out"))
    assert new.keys() - old.keys() == {"README.md", "rompatch_manifest.json"}
    for name, (content, _) in old.items():
        written = new[name][0]
        if name == place.shard:
            cut = slice(place.start, place.start + place.size)
            assert content[cut] != written[cut]
            written = written[: cut.start] + content[cut] + written[cut.stop :]
        assert written == content, name


@pytest.mark.parametrize("kind", ["base", "sharded"])
def test_the_base_is_not_touched(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    before = contents(folder)
    bake(folder, tmp_path / "out")
    assert contents(folder) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_transformers_loads_what_was_baked(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_checkpoint(tmp_path / "base", dtype=dtype)
    out = bake(folder, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", local_files_only=True)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    assert model.dtype == dtype
    assert torch.equal(model.get_parameter(SITE), -plain.get_parameter(SITE))
    assert torch.equal(model.get_parameter(OTHER_SITE), plain.get_parameter(OTHER_SITE))
    assert AutoTokenizer.from_pretrained(out, local_files_only=True)("the tower").input_ids == [3, 4]


def test_the_report_names_what_was_rewritten(sharded: Path, tmp_path: Path) -> None:
    tensors = load_all(sharded)
    expected = {SITE: tensor_sha256(tensors[SITE])}
    report = bake_folder(
        sharded, tmp_path / "out", {SITE: -tensors[SITE]}, card=CARD, manifest=MANIFEST, expected_sha256=expected
    )
    (rewritten,) = report.rewritten
    assert (rewritten.parameter, rewritten.stored_as, rewritten.sha256_before) == (SITE, SITE, expected[SITE])
    assert rewritten.sha256_after == tensor_sha256(-tensors[SITE])
    assert report.files == len(contents(report.folder))
    assert report.size == sum(len(content) for content, _ in contents(report.folder).values())


def test_card_and_manifest_are_written_and_the_bases_own_are_kept(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("# the base\n")
    once = bake(base, tmp_path / "once")
    assert (once / "README.md").read_text() == CARD
    assert (once / "README.base.md").read_text() == "# the base\n"
    assert json.loads((once / "rompatch_manifest.json").read_text()) == MANIFEST
    twice = bake(once, tmp_path / "twice", OTHER_SITE)
    assert (twice / "README.base.md").read_text() == CARD
    assert json.loads((twice / "rompatch_manifest.base.json").read_text()) == MANIFEST


def test_other_forms_of_the_unedited_weights_are_left_out_and_named(base: Path, tmp_path: Path) -> None:
    others = {"consolidated.safetensors", "model.Q8_0.gguf", "onnx/model.onnx", "pytorch_model.bin"}
    others |= {"pytorch_model.bin.index.json"}
    kept = {"notes/usage.txt", "tokenizer.model", "LICENSE"}
    for name in others | kept:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    report = bake_folder(base, tmp_path / "out", {}, card=CARD, manifest={}, expected_sha256={})
    assert set(report.left_out) == others
    assert kept <= contents(report.folder).keys()


def test_links_into_a_cache_become_files(base: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in base.iterdir():
        (snapshot / path.name).symlink_to(path)
    before = contents(base)
    out = bake(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert contents(base) == before


def test_an_existing_output_is_refused_even_if_empty(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "dangling", "base"):
        with pytest.raises(OutputError, match="exists already"):
            bake(base, tmp_path / name)


def test_an_output_inside_the_base_is_refused_by_any_path(base: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(base)
    for out in (base / "edited", base / "a" / "b", tmp_path / "alias" / "edited", base / ".." / "base" / "edited"):
        with pytest.raises(OutputError, match="inside the base"):
            bake(base, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alias", "base"]


def test_another_base_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    tensor = load_all(base)[SITE]
    with pytest.raises(BaseMismatchError, match="not the one that the patches were computed for") as caught:
        bake_folder(base, tmp_path / "out", {SITE: tensor}, card="", manifest={}, expected_sha256={SITE: "0" * 64})
    assert caught.value.facts["parameter"] == SITE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize(
    "tensor", [torch.zeros(16, 32, dtype=torch.float16), torch.zeros(32, 16), torch.zeros(16 * 32)]
)
def test_another_dtype_or_shape_is_refused(base: Path, tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(BaseMismatchError, match="does not fit"):
        bake(base, tmp_path / "out", tensor=tensor)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_checkpoint_does_not_have_is_refused(base: Path, tmp_path: Path) -> None:
    name = "model.layers.9.mlp.down_proj.weight"
    with pytest.raises(SiteError, match=r"no tensor model\.layers\.9"):
        bake_folder(
            base, tmp_path / "out", {name: torch.zeros(16, 32)}, card="", manifest={}, expected_sha256={name: "0"}
        )


def test_names_that_were_saved_without_their_prefix_are_found(base: Path, tmp_path: Path) -> None:
    tensors = load_all(base)
    short = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    expected = {SITE: tensor_sha256(tensors[SITE])}
    report = bake_folder(base, tmp_path / "out", {SITE: -tensors[SITE]}, card="", manifest={}, expected_sha256=expected)
    assert report.rewritten[0].stored_as == "layers.1.mlp.down_proj.weight"
    assert torch.equal(load_all(report.folder)["layers.1.mlp.down_proj.weight"], -tensors[SITE])


@pytest.mark.parametrize(
    ("parameter", "names", "found"),
    [
        ("transformer.h.3.mlp.c_proj.weight", ["h.3.mlp.c_proj.weight", "h.13.mlp.c_proj.weight"], 0),
        ("model.layers.3.fc2.weight", ["base.model.layers.3.fc2.weight"], 0),
        (
            "model.language_model.layers.3.fc2.weight",
            ["vision.layers.4.fc2.weight", "text.model.layers.3.fc2.weight"],
            1,
        ),
        ("model.layers.3.fc2.weight", ["vision.layers.3.fc2.weight", "text.layers.3.fc2.weight"], None),
        ("model.layers.3.fc2.weight", ["model.layers.13.fc2.weight", "fc2.weight", "weight"], None),
    ],
)
def test_names_match_by_their_longest_common_ending_or_not_at_all(
    parameter: str, names: list[str], found: int | None
) -> None:
    if found is None:
        with pytest.raises(SiteError):
            match_name(parameter, names)
    else:
        assert match_name(parameter, names) == names[found]


def test_an_index_that_names_a_missing_shard_is_refused(sharded: Path, tmp_path: Path) -> None:
    sorted(sharded.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ModelError, match="incomplete"):
        bake(sharded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_that_points_outside_its_folder_is_refused(sharded: Path, tmp_path: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    shutil.copy(sorted(sharded.glob("*.safetensors"))[0], tmp_path / "outside.safetensors")
    data = json.loads(index.read_text())
    data["weight_map"][SITE] = "../outside.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="incomplete"):
        bake(sharded, tmp_path / "out")


@pytest.mark.parametrize("damage", ["truncated", "long header", "no json", "offsets"])
def test_a_damaged_shard_is_refused(base: Path, tmp_path: Path, damage: str) -> None:
    path = base / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    tensors = load_all(base)
    header = json.loads(whole[8 : 8 + length])
    header[SITE]["data_offsets"] = [0, 1 << 40]
    far = json.dumps(header).encode()
    damaged = {
        "truncated": whole[:-1],
        "long header": (1 << 60).to_bytes(8, "little") + whole[8:],
        "no json": whole[:8] + b"x" * length + whole[8 + length :],
        "offsets": len(far).to_bytes(8, "little") + far + whole[8 + length :],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ModelError, match="damaged"):
        bake_folder(base, tmp_path / "out", {SITE: tensors[SITE]}, card="", manifest={}, expected_sha256={SITE: ""})
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(OutputError, match="pickled") as caught:
        bake_folder(base, tmp_path / "out", {}, card="", manifest={}, expected_sha256={})
    assert "save_pretrained" in str(caught.value.next_step)


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    import resource

    tensors = load_all(base)
    expected = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="could not be written") as caught:
            bake_folder(base, tmp_path / "out", tensors, card="", manifest={}, expected_sha256=expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "MB of space" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_between_two_tensors_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = bake_module._rewrite

    def interrupted(*arguments: Any) -> Rewritten:
        written = inner(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return written

    monkeypatch.setattr(bake_module, "_rewrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake(base, tmp_path / "out", SITE, OTHER_SITE)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


BAKE_AND_WAIT = """
import sys, time
from pathlib import Path
from safetensors.torch import load_file
from rompatch.apply import bake
from rompatch.sites import tensor_sha256
base, out, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
tensor = load_file(base / "model.safetensors")[name]
inner = bake._rewrite
def stop(*arguments):
    inner(*arguments)
    print("written", flush=True)
    time.sleep(60)
bake._rewrite = stop
bake.bake_folder(base, out, {name: -tensor}, card="", manifest={}, expected_sha256={name: tensor_sha256(tensor)})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_bake_shows_no_output_and_the_next_one_removes_its_remains(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BAKE_AND_WAIT, str(base), str(tmp_path / "out"), SITE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    (remains,) = tmp_path.glob(".out.*.tmp")
    os.utime(remains, (0, 0))
    bake(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
