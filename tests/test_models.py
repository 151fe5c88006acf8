"""Loading a base: by folder, GGUF file, alias and hub id; and its fingerprints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints import LAYERS, save_checkpoint, save_gguf, tiny_llama, tiny_tokenizer
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from rompatch import gguf_cache
from rompatch.errors import ModelError, SiteError, UnknownModelError
from rompatch.models import Base, fingerprint_inputs, load_base, wrap


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own, and a hub that cannot be reached."""
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(str(folder))


def test_a_folder_loads_ready_for_use(base: Base, folder: Path) -> None:
    assert (base.source, base.folder, base.model_type) == ("tiny", folder, "llama")
    assert (base.n_layers, base.context_length, base.hidden_size) == (LAYERS, 64, 16)
    assert base.architecture.pattern == "model.layers.{}.mlp.down_proj"
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_loading_leaves_the_folder_alone(tmp_path: Path) -> None:
    copy = save_checkpoint(tmp_path / "copy")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.iterdir()}
    loaded = load_base(str(copy))
    with torch.no_grad():
        loaded.site(1).weight.fill_(7.0)  # the weights may be views of the mapped file
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_checkpoints_own_dtype_is_kept_unless_another_is_named(tmp_path: Path, dtype: str) -> None:
    saved = save_checkpoint(tmp_path / "typed", dtype=getattr(torch, dtype))
    assert load_base(str(saved)).ref().dtype == dtype
    assert load_base(str(saved), dtype="float32").ref().dtype == "float32"


def test_hashes_are_equal_after_saving_and_loading_again(base: Base, tmp_path: Path) -> None:
    base.model.save_pretrained(tmp_path / "again")
    base.tokenizer.save_pretrained(tmp_path / "again")
    again = load_base(str(tmp_path / "again"), dtype="bfloat16")
    assert again.config_hash == base.config_hash
    assert again.tokenizer_hash == base.tokenizer_hash


def test_config_hash_sees_what_changes_the_computation() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    before = wrap(model, tokenizer).config_hash
    model.config.use_cache = False
    assert wrap(model, tokenizer).config_hash == before
    model.config.rms_norm_eps = 0.1
    assert wrap(model, tokenizer).config_hash != before


def test_tokenizer_hash_ignores_padding_and_sees_the_vocabulary() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    before = wrap(model, tokenizer).tokenizer_hash
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["the tower", "the"], padding=True, truncation=True, max_length=2)
    assert wrap(model, tokenizer).tokenizer_hash == before
    swapped = ["<s>", "</s>", "<unk>", "tower", "the"]
    assert wrap(model, tiny_tokenizer(swapped)).tokenizer_hash != before
    assert wrap(model, tiny_tokenizer([*swapped[:3], "the", "tower"])).tokenizer_hash != before


@pytest.mark.parametrize(
    ("parameter", "layer", "counts"),
    [
        ("model.embed_tokens.weight", 0, True),
        ("model.layers.0.self_attn.q_proj.weight", 1, True),
        ("model.layers.1.mlp.up_proj.weight", 1, True),
        ("model.layers.1.post_attention_layernorm.weight", 1, True),
        ("model.layers.2.mlp.up_proj.weight", 1, False),
        ("model.layers.1.input_layernorm.weight", 0, False),
        ("model.norm.weight", 1, False),
        ("lm_head.weight", 1, False),
    ],
)
def test_input_fingerprint_covers_exactly_what_comes_before(parameter: str, layer: int, counts: bool) -> None:
    model = tiny_llama()
    wrapped = wrap(model, tiny_tokenizer())
    before = fingerprint_inputs(wrapped, layer)
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[0] += 1
    assert (fingerprint_inputs(wrapped, layer) != before) is counts


def test_input_fingerprint_covers_embeddings_tied_to_the_head_and_learned_positions() -> None:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=13, n_inner=16))
    for model, names in ((tiny_llama(tied=True), ["lm_head"]), (gpt2, ["lm_head", "transformer.wpe"])):
        wrapped = wrap(model, tiny_tokenizer())
        for name in names:
            before = fingerprint_inputs(wrapped, 0)
            with torch.no_grad():
                model.get_submodule(name).weight.view(-1)[0] += 1
            assert fingerprint_inputs(wrapped, 0) != before, name


def test_input_fingerprint_of_a_missing_layer_is_refused(base: Base) -> None:
    with pytest.raises(SiteError, match="no layer 3"):
        fingerprint_inputs(base, LAYERS)


def test_wrap_leaves_the_callers_model_as_it_is() -> None:
    model = tiny_llama().train()
    wrapped = wrap(model, tiny_tokenizer(), source="mine")
    assert wrapped.model is model
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (wrapped.source, wrapped.folder) == ("mine", None)


def test_a_folder_comes_before_an_alias_of_the_same_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert load_base("smollm2-135m").folder == tmp_path / "smollm2-135m"


def test_an_unknown_model_is_named_with_everything_that_was_tried(cache: Path) -> None:
    with pytest.raises(UnknownModelError) as caught:
        load_base("smollm2-135")
    text = str(caught.value)
    assert "folder or file: none at" in text
    assert "alias: none (smollm2-135m)" in text
    assert "hub: cannot be reached" in text
    assert "Did you mean 'smollm2-135m'?" in text


@pytest.mark.parametrize("spec", ["./nowhere/model", "missing.gguf", "a/b/c"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(spec: str, cache: Path) -> None:
    with pytest.raises(UnknownModelError, match="hub: not asked"):
        load_base(spec)


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"The model in .*damaged cannot be loaded"):
        load_base(str(damaged))


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_random_numbers(
    folder: Path, tmp_path: Path
) -> None:
    partial = Path(shutil.copytree(folder, tmp_path / "partial"))
    tensors = load_file(partial / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing, model\.layers\.1\.mlp\.down_proj\.weight"):
        load_base(str(partial))


def test_a_folder_without_a_model_a_strange_file_a_strange_dtype_and_device_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for spec, match in ((tmp_path, "holds no model"), (tmp_path / "notes.txt", "not a model file")):
        with pytest.raises(ModelError, match=match):
            load_base(str(spec))
    with pytest.raises(ModelError, match="float32, float16, bfloat16"):
        load_base(str(folder), dtype="int8")
    with pytest.raises(ModelError, match="device 'cuda:99'"):
        load_base(str(folder), device="cuda:99")


def test_a_gguf_file_is_dequantised_once_and_then_only_its_folder_is_read(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save_gguf(tmp_path / "tiny.gguf")
    notes: list[str] = []
    first = load_base(str(path), on_progress=notes.append)
    assert sum(note.startswith("dequantising") for note in notes) == 1
    written = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    assert torch.equal(first.site(1).matrix(), torch.from_numpy(written["blk.1.ffn_down.weight"].copy()))
    notes.clear()
    second = load_base(str(path), on_progress=notes.append)
    assert not any(note.startswith("dequantis") for note in notes)
    assert second.folder == first.folder
    assert second.ref() == first.ref()
    assert second.tokenizer("the cat").input_ids == first.tokenizer("the cat").input_ids
    assert capfd.readouterr() == ("", "")  # what there is to say goes through on_progress


def test_another_gguf_file_of_the_same_name_gets_a_folder_of_its_own(cache: Path, tmp_path: Path) -> None:
    first = gguf_cache.dequantised_folder(save_gguf(tmp_path / "tiny.gguf", seed=0))
    assert gguf_cache.dequantised_folder(save_gguf(tmp_path / "tiny.gguf", seed=1)) != first


def test_a_truncated_gguf_file_leaves_nothing_in_the_cache(cache: Path, tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="could not be read"):
        load_base(str(path))
    assert list((cache / "models").iterdir()) == []


DEQUANTISE_SLOWLY = """
import os, sys, time
from pathlib import Path
from rompatch import gguf_cache
inner = gguf_cache._convert
def slow(path, work):
    inner(path, work)
    print("written", flush=True)
    time.sleep(60)
gguf_cache._convert = slow
gguf_cache.dequantised_folder(Path(sys.argv[1]))
"""


def test_an_interrupted_dequantisation_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = gguf_cache._convert

    def interrupted(path: Path, work: Path) -> None:
        inner(path, work)
        raise KeyboardInterrupt

    path = save_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_cache, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gguf_cache.dequantised_folder(path)
    assert list((cache / "models").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_dequantisation_leaves_no_folder_and_its_remains_are_removed(cache: Path, tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf")
    process = subprocess.Popen([sys.executable, "-c", DEQUANTISE_SLOWLY, str(path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        (alive,) = (cache / "models").iterdir()
        an_hour_ago = time.time() - 3600
        os.utime(alive, (an_hour_ago, an_hour_ago))
        # Another process may complete the same folder meanwhile, and leaves the work of the living one alone.
        folder = gguf_cache.dequantised_folder(path)
        assert alive.is_dir()
        process.send_signal(signal.SIGKILL)
    shutil.rmtree(folder)
    assert gguf_cache.dequantised_folder(path) == folder
    assert list((cache / "models").iterdir()) == [folder]
