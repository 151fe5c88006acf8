"""A GGUF model with the stack in it: edited tensors in a finer type, every other byte the base's own."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import save_gguf

from rompatch.errors import OutputError
from rompatch.export.clients import ask_llama
from rompatch.export.gguf_model import decoded, encoded, open_gguf, write_gguf_model

NAME = "blk.1.ffn_down.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_gguf(tmp_path / "base.gguf")


@pytest.fixture
def quantised(source: Path, tmp_path: Path) -> Path:
    """The same with the tensor in Q8_0: a float16 one is larger, so everything behind it moves."""
    matrix = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}[NAME].astype(np.float32)
    out = tmp_path / "q8.gguf"
    write_gguf_model(source, out, {NAME: encoded(matrix, "q8_0")}, "q8_0", base_folder=None)
    return out


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: (tensor.tensor_type.name, tuple(tensor.shape.tolist()), tensor.data.tobytes())
        for tensor in reader.tensors
    }


def metadata(path: Path) -> dict[str, tuple[object, list[bytes]]]:
    fields = gguf.GGUFReader(path).fields
    return {name: (field.types, [part.tobytes() for part in field.parts]) for name, field in fields.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "q8_0"])
@pytest.mark.parametrize("which", ["source", "quantised"])
def test_only_the_edited_tensor_differs(which: str, dtype: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base: Path = request.getfixturevalue(which)
    before_bytes = base.read_bytes()
    matrix = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    out = tmp_path / "out.gguf"
    size = write_gguf_model(base, out, {NAME: encoded(matrix, dtype)}, dtype, base_folder=None)
    assert size == out.stat().st_size
    assert base.read_bytes() == before_bytes
    assert metadata(out) == metadata(base)
    before, after = tensors(base), tensors(out)
    assert list(after) == list(before)
    kind, shape, data = after.pop(NAME)
    old = before.pop(NAME)
    assert after == before
    assert shape == old[1]
    assert kind == {"float16": "F16", "float32": "F32", "q8_0": "Q8_0"}[dtype]
    assert data == encoded(matrix, dtype).tobytes()


def test_every_tensor_begins_at_the_alignment(quantised: Path, tmp_path: Path) -> None:
    matrix = np.zeros((16, 32), dtype=np.float32)
    out = tmp_path / "out.gguf"
    write_gguf_model(quantised, out, {NAME: encoded(matrix, "float16")}, "float16", base_folder=None)
    reader = gguf.GGUFReader(out)
    assert all((tensor.data_offset - reader.data_offset) % reader.alignment == 0 for tensor in reader.tensors)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.0), ("float16", 5e-4), ("q8_0", 8e-3)])
def test_what_a_type_loses(dtype: str, bound: float) -> None:
    matrix = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    lost = np.linalg.norm(decoded(encoded(matrix, dtype), matrix.shape, dtype) - matrix) / np.linalg.norm(matrix)
    assert bound / 10 <= lost <= bound


def test_a_replacement_that_is_the_base_s_own_gives_the_base_s_own_bytes(source: Path, tmp_path: Path) -> None:
    own = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}[NAME].astype(np.float32)
    out = tmp_path / "out.gguf"
    write_gguf_model(source, out, {NAME: encoded(own, "float32")}, "float32", base_folder=None)
    assert tensors(out) == tensors(source)
    assert out.read_bytes() == source.read_bytes()


def test_llama_cpp_loads_it(source: Path, tmp_path: Path) -> None:
    own = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}[NAME].astype(np.float32)
    prompts = [[0, 4, 5, 6], [0, 31, 7]]
    found = {}
    for dtype in ("float32", "float16"):
        out = tmp_path / f"{dtype}.gguf"
        write_gguf_model(source, out, {NAME: encoded(own, dtype)}, dtype, base_folder=None)
        found[dtype] = ask_llama(out, None, prompts)
    assert found["float32"] == ask_llama(source, None, prompts)
    for one, other in zip(found["float32"], found["float16"], strict=True):
        assert max(abs(one[token] - other[token]) for token in one) < 0.02


def test_rows_that_do_not_fill_blocks_are_refused() -> None:
    with pytest.raises(OutputError, match="cannot be kept in Q8_0") as caught:
        encoded(np.zeros((4, 40), dtype=np.float32), "q8_0")
    assert "float16" in str(caught.value)


def test_numbers_that_do_not_fit_float16_are_refused() -> None:
    with pytest.raises(OutputError, match="do not fit float16"):
        encoded(np.full((4, 32), 1e5, dtype=np.float32), "float16")


@pytest.mark.parametrize("damage", ["truncated", "no magic", "empty", "huge count"])
def test_a_damaged_file_is_refused(damage: str, source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    source.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "no magic": b"GGML" + whole[4:],
            "empty": b"",
            "huge count": whole[:8] + (1 << 40).to_bytes(8, "little") + whole[16:],
        }[damage]
    )
    with pytest.raises(OutputError, match="cannot be read"):
        write_gguf_model(source, tmp_path / "out.gguf", {}, "float16", base_folder=None)
    assert not (tmp_path / "out.gguf").exists()


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("a", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(OutputError, match="not one that can be edited") as caught:
        open_gguf(tmp_path / "part.gguf")
    assert "--merge" in str(caught.value)
