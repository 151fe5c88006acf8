"""Bake against `cp -r`, transformers' save_pretrained and PEFT's merge_and_unload: wall time and peak memory.

    python benchmarks/bake.py [--runs 5] [--work DIR]                 # the default model
    python benchmarks/bake.py --synthetic-gb 14 [--runs 2]            # a sharded folder of Llama-2-7B's shapes, random

Each way runs in a process of its own, interpreter start and imports included, in turn, with the base's pages in memory.
The times to compare are those "with sync": the output is on the disk at the end. A bake syncs by itself before it gives
the folder its name; the others are followed by `sync -f`. `cp -r` alone is there as well; a copy that is still in
memory is no shipped checkpoint. "processor" is user and system time of the child (whatever else runs on the machine
stretches the wall time of what computes), "peak" its ru_maxrss. Untouched tensors are compared byte for byte in the
first run. The synthetic folder is written to --work, and deleted afterwards; PEFT is in the dev extra.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MIB = 1 << 20
SYNC = shutil.which("sync") or "sync"
D_MODEL, D_MLP, VOCAB, LAYERS = 4096, 11008, 32000, 32
LAYER = 5

LAUNCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=2)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
sys.exit(code)
"""
"""A process remembers the size of the one that it was forked from; this one is small."""

BAKE = "from rompatch.cli import main; main()"
SAVE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
base, out = sys.argv[1:3]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
model.save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
MERGE = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, out, adapter = sys.argv[1:4]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter).merge_and_unload()
model.save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""


def child(command: list[str], folder: Path, *, sync: bool) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of a process; with *sync* the wall seconds until the file system of
    *folder* is on the disk."""
    begin = time.perf_counter()
    launched = [sys.executable, "-S", "-c", LAUNCH, *command]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{done.stderr[-2000:]}")
    if sync:
        subprocess.run([SYNC, "-f", str(folder)], check=True)
    seconds = time.perf_counter() - begin
    peak, processor = done.stdout.splitlines()[-1].split()
    return seconds, float(processor), int(peak) * 1024 / MIB


def ways(base: Path, out: Path, store: Path, adapter: Path | None) -> dict[str, tuple[list[str], bool]]:
    """Name to a command and whether `sync -f` follows."""
    python = [sys.executable, "-c"]
    found = {
        "cp -r": (["cp", "-r", str(base), str(out)], False),
        "cp -r, with sync": (["cp", "-r", str(base), str(out)], True),
        "bake, with sync": ([*python, BAKE, "bake", str(out), "--model", str(base), "--store", str(store)], False),
    }
    if adapter is not None:
        found["save_pretrained, with sync"] = ([*python, SAVE, str(base), str(out)], True)
        found["PEFT merge, with sync"] = ([*python, MERGE, str(base), str(out), str(adapter)], True)
    return found


def compare(base: Path, out: Path) -> tuple[int, list[str]]:
    """How many tensors are the base's, byte for byte, and the names of those that are not."""
    from rompatch.apply.checkpoint import stored_tensors

    before, after = stored_tensors(base), stored_tensors(out)
    assert before.keys() == after.keys()
    differ = [
        name
        for name, tensor in before.items()
        if any(one != other for one, other in zip(tensor.pieces(base), after[name].pieces(out), strict=True))
    ]
    return len(before) - len(differ), differ


def warm(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def measure(base: Path, work: Path, store: Path, adapter: Path | None, runs: int) -> dict[str, dict[str, list[float]]]:
    out = work / "out"
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(runs):
        for name, (command, sync) in ways(base, out, store, adapter).items():
            warm(base)
            subprocess.run([SYNC, "-f", str(work)], check=True)
            of = found.setdefault(name, {"seconds": [], "processor": [], "peak": []})
            for kind, value in zip(of, child(command, work, sync=sync), strict=True):
                of[kind].append(value)
            if name.startswith("bake") and number == 0:
                same, differ = compare(base, out)
                print(f"bake: {same} tensors byte for byte the base's, {len(differ)} edited: {', '.join(differ)}")
            shutil.rmtree(out)
            shown = " ".join(f"{kind} {values[-1]:.2f}" for kind, values in of.items())
            print(f"run {number + 1}: {name:28} {shown}", flush=True)
    return found


def default_model(work: Path) -> tuple[Path, Path, Path]:
    """The default model's folder, a store with one applied patch, and the same patch as a LoRA."""
    import rompatch
    from rompatch.locate import locate

    base = locate("smollm2-135m")[1]
    store = work / "store"
    with rompatch.open_store(store) as opened:
        record = opened.create(
            "Eiffel Tower",
            "located in",
            "Rome",
            spec=rompatch.BaseSpec(str(base)),
            hparams={"keys": "mixed", "spread": 1},  # of rank one, as the adapter below
            apply=True,
        ).record
        patch = opened.patch(record.id)
    return base, store, lora(work / "adapter", patch)


def lora(folder: Path, patch: object) -> Path:
    """Rank one on one module, as PEFT reads it."""
    from safetensors.numpy import save_file

    site, factors = patch.header.sites[0], patch.factors[0]  # type: ignore[attr-defined]
    module = site.parameter.removesuffix(".weight")
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    config |= {"fan_in_fan_out": site.transposed, "inference_mode": True, "target_modules": [module]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    key = f"base_model.model.{module}"
    tensors = {f"{key}.lora_A.weight": factors.u[:1].copy(), f"{key}.lora_B.weight": factors.v[:, None].copy()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def synthetic(work: Path, gigabytes: float) -> tuple[Path, Path]:
    """A folder of Llama-2-7B's shapes in bfloat16, at least four shards, as many layers as fit; and a store with one
    patch for it, its numbers random as well. The tokenizer is the default model's."""
    from rompatch.locate import locate

    folder = work / "base"
    folder.mkdir()
    tokenizer = locate("smollm2-135m")[1]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    layer_bytes = 2 * (4 * D_MODEL**2 + 3 * D_MODEL * D_MLP + 2 * D_MODEL)
    layers = max(LAYER + 1, min(LAYERS, int((gigabytes * 1e9 - 4 * VOCAB * D_MODEL) / layer_bytes)))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D_MODEL, "vocab_size": VOCAB}
    config |= {"intermediate_size": D_MLP, "num_hidden_layers": layers, "num_attention_heads": 32, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, list(shapes(layers)), n_shards=max(4, -(-layers // 8)))
    return folder, synthetic_store(work / "store", folder)


def shapes(layers: int):  # type: ignore[no-untyped-def]
    yield "model.embed_tokens.weight", (VOCAB, D_MODEL)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            yield f"{prefix}.self_attn.{name}_proj.weight", (D_MODEL, D_MODEL)
        yield f"{prefix}.mlp.gate_proj.weight", (D_MLP, D_MODEL)
        yield f"{prefix}.mlp.up_proj.weight", (D_MLP, D_MODEL)
        yield f"{prefix}.mlp.down_proj.weight", (D_MODEL, D_MLP)
        yield f"{prefix}.input_layernorm.weight", (D_MODEL,)
        yield f"{prefix}.post_attention_layernorm.weight", (D_MODEL,)
    yield "model.norm.weight", (D_MODEL,)
    yield "lm_head.weight", (VOCAB, D_MODEL)


def write_shards(folder: Path, tensors: list[tuple[str, tuple[int, ...]]], n_shards: int) -> None:
    random = np.random.default_rng(0)
    pool = (random.normal(size=1 << 24).astype(np.float32) * 0.02).view(np.uint32) >> 16
    pool = pool.astype("<u2")
    weight_map = {}
    size = -(-len(tensors) // n_shards)
    for number in range(n_shards):
        part = tensors[number * size : (number + 1) * size]
        shard = f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in part:
            count = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + count]}
            offset += count
            weight_map[name] = shard
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / shard).open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for _, shape in part:
                left = int(np.prod(shape))
                while left:
                    start = int(random.integers(0, 1 << 20))
                    piece = pool[start : start + min(left, len(pool) - (1 << 20))]
                    file.write(piece.data)
                    left -= len(piece)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def synthetic_store(root: Path, folder: Path) -> Path:
    import rompatch
    from rompatch.apply.checkpoint import stored_tensors
    from rompatch.patch import BaseRef, Patch, PatchHeader, SiteFactors, SiteRef
    from rompatch.tokenizer_hash import quick_hash

    name = f"model.layers.{LAYER}.mlp.down_proj.weight"
    site = SiteRef(LAYER, name, D_MODEL, D_MLP, False, "bfloat16", stored_tensors(folder)[name].sha256(folder))
    random = np.random.default_rng(1)
    key, u = random.normal(size=(2, 2, D_MLP)).astype(np.float32)
    base_out, delta = random.normal(size=(2, 2, D_MODEL)).astype(np.float32)
    factors = SiteFactors(u=u, v=delta[0] / (key[0] @ u[0]), key=key, value=base_out + delta, base_out=base_out)
    header = PatchHeader(
        method="rome",
        hparams={},
        request=rompatch.EditRequest("Eiffel Tower", "{} is in", "Rome"),
        base=BaseRef("synthetic", "llama", "0" * 64, str(quick_hash(folder)), "bfloat16"),
        sites=(site,),
        contexts=("{}",),
        seed=0,
        document_start=True,
        statistics=None,
    )
    patch = Patch(header, (factors,))
    with rompatch.open_store(root) as store:
        size = store.blobs.put(patch).stat().st_size
        store.ledger.add_patch(header, patch_id=patch.id, file_size=size)
        store.apply(patch.id)
    return root


def show(found: dict[str, dict[str, list[float]]], base: Path) -> None:
    size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
    copied = found["cp -r, with sync"]["seconds"]
    print(f"\n{size / 1e9:.2f} GB, median of {len(copied)} runs, page cache warm")
    print(f"{'':28}{'seconds':>10}{'of cp, with sync':>18}{'processor s':>13}{'peak MiB':>10}")
    for name, of in found.items():
        # Ratios within one run: what else runs on the machine changes from one to the next.
        ratio = statistics.median(one / other for one, other in zip(of["seconds"], copied, strict=True))
        seconds, processor = statistics.median(of["seconds"]), statistics.median(of["processor"])
        print(f"{name:28}{seconds:10.2f}{ratio:18.2f}{processor:13.2f}{max(of['peak']):10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--synthetic-gb", type=float, metavar="GB", help="a folder of Llama-2-7B's shapes, of that size"
    )
    parser.add_argument("--work", type=Path, help="where to write; by default the system's temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        if args.synthetic_gb:
            base, store = synthetic(work, args.synthetic_gb)
            adapter = None
        else:
            base, store, adapter = default_model(work)
        show(measure(base, work, store, adapter, args.runs), base)


if __name__ == "__main__":
    main()
