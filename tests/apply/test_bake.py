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

import numpy as np
import pytest
import torch
from checkpoints import save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rompatch.apply import bake as bake_module
from rompatch.apply.bake import bake_folder
from rompatch.apply.baked import BakeOptions, BakeReport, Edit, Rewritten, Written
from rompatch.apply.checkpoint import match_name, stored_tensors
from rompatch.apply.solve import SiteUpdate
from rompatch.errors import BaseMismatchError, ModelError, OutputError, SiteError
from rompatch.patch import SiteRef
from rompatch.sites import dtype_name, tensor_sha256

SITE = "model.layers.1.mlp.down_proj.weight"
OTHER_SITE = "model.layers.2.mlp.down_proj.weight"
CARD = "# tiny, edited\n"
MANIFEST = '{"patches": ["a1b2c3"]}'


def documents(_written: Written) -> dict[str, str]:
    return {"README.md": CARD, "rompatch_manifest.json": MANIFEST}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of last change."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def negation(name: str, tensor: torch.Tensor, sha256: str | None = None) -> Edit:
    """W - 2 W I, which float64 and every narrower dtype hold exactly."""
    d_out, d_in = tensor.shape
    site = SiteRef(1, name, d_out, d_in, False, dtype_name(tensor.dtype), sha256 or tensor_sha256(tensor))
    return Edit(site, SiteUpdate(-2 * tensor.double().numpy(), np.eye(d_in)))


def report_of(base: Path, out: Path, *names: str, tensor: torch.Tensor | None = None, **options: bool) -> BakeReport:
    """Bake with every named tensor negated; *tensor* is what the patches think that it was."""
    tensors = load_all(base)
    edits = [negation(name, tensors[name] if tensor is None else tensor) for name in names or (SITE,)]
    return bake_folder(base, out, edits, documents, BakeOptions(**options))


def bake(base: Path, out: Path, *names: str, tensor: torch.Tensor | None = None, **options: bool) -> Path:
    return report_of(base, out, *names, tensor=tensor, **options).folder


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
    tensor = load_all(sharded)[SITE]
    report = report_of(sharded, tmp_path / "out")
    place = stored_tensors(sharded)[SITE]
    assert report.rewritten == (
        Rewritten(SITE, SITE, place.shard, "float32", (16, 32), tensor_sha256(tensor), tensor_sha256(-tensor)),
    )
    assert report.files == len(contents(report.folder))
    assert report.size == sum(len(content) for content, _ in contents(report.folder).values())


def test_the_documents_take_the_place_of_the_bases_own_whose_manifest_is_kept(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("# the base\n")
    once = bake(base, tmp_path / "once")
    assert (once / "README.md").read_text() == CARD
    assert (once / "rompatch_manifest.json").read_text() == MANIFEST
    assert not (once / "rompatch_manifest.base.json").exists()
    twice = bake(once, tmp_path / "twice", OTHER_SITE)
    assert (twice / "rompatch_manifest.base.json").read_text() == MANIFEST
    assert contents(bake(twice, tmp_path / "thrice")).keys() == contents(twice).keys()


def test_the_same_inputs_give_the_same_bytes(sharded: Path, tmp_path: Path) -> None:
    one, other = contents(bake(sharded, tmp_path / "one")), contents(bake(sharded, tmp_path / "other"))
    assert {name: content for name, (content, _) in one.items()} == {
        name: content for name, (content, _) in other.items()
    }


def test_other_forms_of_the_unedited_weights_are_left_out_and_named(base: Path, tmp_path: Path) -> None:
    others = {"consolidated.safetensors", "model.Q8_0.gguf", "onnx/model.onnx", "pytorch_model.bin"}
    others |= {"pytorch_model.bin.index.json"}
    kept = {"notes/usage.txt", "tokenizer.model", "LICENSE"}
    for name in others | kept:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    report = bake_folder(base, tmp_path / "out", [], documents)
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
        bake_folder(base, tmp_path / "out", [negation(SITE, tensor, "0" * 64)], documents)
    assert caught.value.facts["parameter"] == SITE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize("tensor", [torch.zeros(16, 32, dtype=torch.float16), torch.zeros(32, 16)])
def test_another_dtype_or_shape_is_refused(base: Path, tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(BaseMismatchError, match="does not fit"):
        bake(base, tmp_path / "out", tensor=tensor)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_checkpoint_does_not_have_is_refused(base: Path, tmp_path: Path) -> None:
    name = "model.layers.9.mlp.down_proj.weight"
    with pytest.raises(SiteError, match=r"no tensor model\.layers\.9"):
        bake_folder(base, tmp_path / "out", [negation(name, torch.zeros(16, 32))], documents)


def test_names_that_were_saved_without_their_prefix_are_found(base: Path, tmp_path: Path) -> None:
    tensors = load_all(base)
    short = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    report = bake_folder(base, tmp_path / "out", [negation(SITE, tensors[SITE])], documents)
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
        bake_folder(base, tmp_path / "out", [negation(SITE, tensors[SITE])], documents)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a shard lacks a tensor", "a number too many"])
def test_a_shard_that_disagrees_with_the_index_or_itself_is_refused(sharded: Path, tmp_path: Path, kind: str) -> None:
    shard = sharded / stored_tensors(sharded)[SITE].shard
    if kind == "a shard lacks a tensor":
        tensors = load_file(shard)
        del tensors[SITE]
        save_file({**tensors, "another": torch.zeros(2)}, shard)
    else:
        raw = shard.read_bytes()
        shard.write_bytes(raw.replace(b'"shape":[16,32]', b'"shape":[16,33]'))
        assert shard.read_bytes() != raw
    with pytest.raises(ModelError, match="damaged") as caught:
        bake_folder(sharded, tmp_path / "out", [negation(SITE, torch.zeros(16, 32))], documents)
    assert SITE in str(caught.value.found)
    assert not (tmp_path / "out").exists()


def test_a_base_inside_the_output_is_refused(base: Path, tmp_path: Path) -> None:
    before = contents(base)
    for out in (tmp_path, base.parent, base / ".."):
        with pytest.raises(OutputError, match="lies inside the output"):
            bake(base, out)
    assert contents(base) == before


def test_a_read_only_base_gives_a_writable_checkpoint(sharded: Path, tmp_path: Path) -> None:
    for path in sharded.iterdir():
        path.chmod(0o444)
    sharded.chmod(0o555)
    try:
        out = bake(sharded, tmp_path / "out")
    finally:
        sharded.chmod(0o755)
    assert all(path.stat().st_mode & 0o200 for path in [out, *out.iterdir()])


def test_untouched_files_are_linked_on_request_and_touched_ones_never(sharded: Path, tmp_path: Path) -> None:
    before = contents(sharded)
    report = report_of(sharded, tmp_path / "out", hard_link=True)
    touched = stored_tensors(sharded)[SITE].shard
    linked = {path.name for path in report.folder.iterdir() if path.stat().st_nlink == 2}
    assert linked == before.keys() - {touched}
    assert report.linked == len(linked)
    assert contents(sharded) == before
    assert {name: content for name, (content, _) in contents(report.folder).items()} == {
        name: content for name, (content, _) in contents(bake(sharded, tmp_path / "copied")).items()
    }


def test_everything_is_read_back_on_request(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_all(sharded)
    seen: list[Written] = []

    def noting(written: Written) -> dict[str, str]:
        seen.append(written)
        return {}

    report = bake_folder(
        sharded, tmp_path / "out", [negation(SITE, before[SITE])], noting, BakeOptions(verify_all=True)
    )
    assert report.verified == len(before)
    assert seen[0].base_tensors == {name: tensor_sha256(tensor) for name, tensor in before.items()}

    inner = bake_module.rewrite

    def clumsy(work: Path, *arguments: Any) -> Rewritten:
        shard = work / stored_tensors(work)[OTHER_SITE].shard
        with shard.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        return inner(work, *arguments)

    monkeypatch.setattr(bake_module, "rewrite", clumsy)
    with pytest.raises(OutputError, match="could not be written") as caught:
        bake(sharded, tmp_path / "again", verify_all=True)
    assert "reads back otherwise" in str(caught.value.found)
    assert not (tmp_path / "again").exists()


def test_progress_counts_every_byte_that_is_copied(base: Path, tmp_path: Path) -> None:
    (base / "large.txt").write_bytes(b"x" * 3_000_000)
    steps: list[tuple[str, int, int]] = []
    bake_folder(base, tmp_path / "out", [], documents, on_step=lambda *step: steps.append(step))
    total = sum(path.stat().st_size for path in base.iterdir()) // 1_000_000
    assert steps[-1] == ("copying, MB", total, total)
    assert total == 3


def pickle_weights(folder: Path, dtype: torch.dtype = torch.float32, shards: int = 1) -> Path:
    """The same checkpoint with its weights in pytorch_model.bin files."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_all(folder).items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = [names[number::shards] for number in range(shards)]
    files = [f"pytorch_model-{number + 1:05}-of-{shards:05}.bin" for number in range(shards)]
    if shards == 1:
        files = ["pytorch_model.bin"]
    else:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, part in zip(files, parts, strict=True):
        torch.save({name: tensors[name] for name in part}, folder / file)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pickled_weights_become_safetensors(base: Path, tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_all(base).items()}
    pickle_weights(base, dtype, shards)
    before = contents(base)
    report = bake_folder(base, tmp_path / "out", [negation(SITE, tensors[SITE])], documents)
    assert contents(base) == before
    assert report.left_out == ()
    assert not list(report.folder.glob("*.bin*"))
    assert len(list(report.folder.glob("*.safetensors"))) == shards
    after = load_all(report.folder)
    assert {name: tensor_sha256(tensor) for name, tensor in after.items()} == {
        name: tensor_sha256(-tensor if name == SITE else tensor) for name, tensor in tensors.items()
    }
    model = AutoModelForCausalLM.from_pretrained(report.folder, dtype="auto", local_files_only=True)
    assert torch.equal(model.get_parameter(SITE), -tensors[SITE])


def test_pickled_tensors_in_any_order_of_memory_and_of_any_kind_are_kept(base: Path, tmp_path: Path) -> None:
    tensors = load_all(base)
    odd = {"mask": torch.tensor([True, False]), "count": torch.tensor(7), "turned": torch.arange(6.0).reshape(2, 3).T}
    (base / "model.safetensors").unlink()
    torch.save({**tensors, **odd}, base / "pytorch_model.bin")
    after = load_all(bake_folder(base, tmp_path / "out", [], documents).folder)
    assert after.keys() == tensors.keys() | odd.keys()
    for name, tensor in odd.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("harm",))


@pytest.mark.parametrize("payload", [{"a": Harmful()}, {"a": 1}, [1, 2], None])
def test_a_pickle_of_anything_but_tensors_is_refused_and_never_run(
    base: Path, tmp_path: Path, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (base / "model.safetensors").unlink()
    if payload is None:
        (base / "pytorch_model.bin").write_bytes(b"no pickle at all")
    else:
        torch.save(payload, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="damaged"):
        bake_folder(base, tmp_path / "out", [], documents)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    import resource

    if not in_kernel:  # write(2) takes what still fits, and only the next call fails
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="could not be written") as caught:
            bake(base, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "MB of space" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_between_two_tensors_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = bake_module.rewrite

    def interrupted(*arguments: Any) -> Rewritten:
        written = inner(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return written

    monkeypatch.setattr(bake_module, "rewrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake(base, tmp_path / "out", SITE, OTHER_SITE)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


BAKE_AND_WAIT = """
import sys, time
from pathlib import Path
from test_bake import bake, bake_module
inner = bake_module.rewrite
def stop(*arguments):
    inner(*arguments)
    print("written", flush=True)
    time.sleep(60)
bake_module.rewrite = stop
bake(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_bake_shows_no_output_and_the_next_one_removes_its_remains(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BAKE_AND_WAIT, str(base), str(tmp_path / "out")]
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    (remains,) = tmp_path.glob(".out.*.tmp")
    os.utime(remains, (0, 0))
    bake(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
