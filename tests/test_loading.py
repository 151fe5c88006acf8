"""A checkpoint is mapped, not copied; larger models stay on disk, and nothing is ever written beside a base."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from pico import save_pico

from rompatch.errors import ModelError
from rompatch.models import Base, fingerprint_inputs, load_base
from rompatch.offload import is_offloaded

IDS = torch.tensor([[1, 5, 7, 9]])
MAPS = Path("/proc/self/maps")
SMALL = "cpu=100KB"
"""Less than a pico model takes in float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("pico") / "llama")


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as an old checkpoint has them."""
    path = save_pico(tmp_path_factory.mktemp("pico") / "pickled")
    model = load_base(str(path)).model
    torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mapped_file(address: int) -> tuple[str, str]:
    """Permissions and file of the mapping that holds *address*."""
    for line in MAPS.read_text().splitlines():
        span, permissions, _offset, _device, _inode, *path = line.split(maxsplit=5)
        start, stop = (int(part, 16) for part in span.split("-"))
        if start <= address < stop:
            return permissions, "".join(path)
    raise AssertionError(hex(address))


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not say what is mapped where")
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_weights_are_the_pages_of_the_file_private_and_uncopied(folder: Path, device: str) -> None:
    base = load_base(str(folder), device=device)
    for name, parameter in base.model.named_parameters():
        permissions, path = mapped_file(parameter.data_ptr())
        assert path == str(folder / "model.safetensors"), name
        assert permissions.endswith("p"), "a shared mapping would write changes to the file"


def same(base: Base, plain: Base) -> bool:
    return (
        base.ref() == plain.ref()
        and base.site(1).ref() == plain.site(1).ref()
        and fingerprint_inputs(base, 1) == fingerprint_inputs(plain, 1)
        and torch.equal(base.model(IDS.to(base.input_device)).logits, plain.model(IDS).logits)
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_model_larger_than_its_limit_stays_on_disk_and_computes_the_same(folder: Path, dtype: str | None) -> None:
    before = files(folder)
    base = load_base(str(folder), dtype=dtype, device="auto", max_memory=SMALL)
    assert is_offloaded(base.model)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert same(base, load_base(str(folder), dtype=dtype))
    assert files(folder) == before


def test_auto_on_a_machine_where_all_fits_offloads_nothing(folder: Path) -> None:
    base = load_base(str(folder), device="auto", max_memory="cpu=1GB")
    assert not is_offloaded(base.model)
    assert same(base, load_base(str(folder)))


def test_loading_with_limits_says_nothing_on_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(str(folder), device="auto", max_memory=SMALL)
    assert capfd.readouterr() == ("", "")


def test_weights_that_cannot_be_mapped_need_an_offload_folder(pickled: Path) -> None:
    with pytest.raises(ModelError, match="--offload-folder"):
        load_base(str(pickled), device="auto", max_memory=SMALL)


def test_what_is_offloaded_is_written_apart_for_each_model_and_removed_with_it(pickled: Path, tmp_path: Path) -> None:
    bases = [
        load_base(str(pickled), device="auto", max_memory=SMALL, offload_folder=tmp_path / "off", dtype=dtype)
        for dtype in (None, "bfloat16")
    ]
    assert len(list((tmp_path / "off").iterdir())) == 2
    assert same(bases[0], load_base(str(pickled)))
    bases.clear()
    gc.collect()
    assert not list((tmp_path / "off").iterdir())


def test_a_load_that_fails_leaves_the_offload_folder_empty(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name, content in files(folder).items():
        (damaged / name).write_bytes(content[:1000] if name == "model.safetensors" else content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(damaged), device="auto", max_memory=SMALL, offload_folder=tmp_path / "off")
    assert not list((tmp_path / "off").iterdir())


def test_an_offload_folder_inside_the_model_is_refused(folder: Path) -> None:
    before = files(folder)
    for inside in (folder, folder / "off"):
        with pytest.raises(ModelError, match="inside the model's own folder"):
            load_base(str(folder), device="auto", offload_folder=inside)
    assert files(folder) == before
