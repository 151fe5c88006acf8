"""Peak memory of loading a base, of an edit, of a session and of key statistics, against the size of the weights.

    python benchmarks/memory.py [--model smollm2-135m] [--device auto --max-memory cpu=200MiB] [--json FILE]

Each step runs in a process of its own. "peak" is the most that was resident (VmHWM), "own" the most of it that is not a
page of a file: the system may drop file pages, a base's weights among them, and read them again. "ratio" is the peak
without what the imports take and without chol(C) (d_in x d_in, float64), in sizes of the model. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

STEPS = ("imports", "load", "keys", "create", "session", "stats")
"""In this order: a session needs a patch."""

FACT = ("Eiffel Tower", "located in", "Rome")
TOKENS = 8192
MIB = 1 << 20


class Watch(threading.Thread):
    """Samples this process's own memory (bytes); its peak has no counter in the kernel."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own, self._over = 0, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.002):
            self.own = max(self.own, status("RssAnon"))

    def stop(self) -> None:
        self._over.set()
        self.join()


def status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def measured(step: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run *step* here."""
    watch = Watch()
    watch.start()
    facts = run(step, args)
    watch.stop()
    return {"step": step, "peak": status("VmHWM"), "own": watch.own, **facts}


def run(step: str, args: argparse.Namespace) -> dict[str, Any]:
    import transformers.models.llama.modeling_llama  # noqa: F401 - part of what imports cost, whichever model it is
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import rompatch
    from rompatch.apply.session import PatchedModel
    from rompatch.compute.gather import encode_contexts, gather_keys
    from rompatch.compute.methods import METHODS  # noqa: F401
    from rompatch.edits import EditRequest
    from rompatch.workflows.baking import bake  # noqa: F401

    if step == "imports":
        return {}
    limits = {"max_memory": args.max_memory, "offload_folder": args.offload_folder}
    where = {"device": args.device, "dtype": args.dtype}
    if step in ("load", "keys"):
        base = rompatch.load_base(args.model, **where, **limits)
        site = base.site(base.preset_layer)
        if step == "keys":
            rows = encode_contexts(base.tokenizer, EditRequest(FACT[0], "{} is in", FACT[2]), ("{}",), True)
            gather_keys(base.model, base.tokenizer, site, rows)
        return {"weights": weight_bytes(base.model), "d_in": site.d_in}
    with rompatch.open_store(args.store) as store:
        store.max_memory, store.offload_folder = args.max_memory, args.offload_folder
        spec = rompatch.BaseSpec(args.model, args.dtype)
        if step == "create":
            store.create(*FACT, spec=spec, device=args.device)
        elif step == "stats":
            store.build_statistics(str(args.corpus), spec=spec, device=args.device, tokens=TOKENS)
        else:
            base = store.base(spec, device=args.device)
            with PatchedModel(base) as patched:
                patched.activate([store.patch(FACT[0])])
                patched.model(input_ids=base.tokenizer("It is", return_tensors="pt").input_ids.to(base.input_device))
    return {}


def weight_bytes(model: Any) -> int:
    """Bytes of all weights, a head that is tied to the embeddings counted once, wherever they are."""
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    twice = head is not embeddings and model.config.get_text_config().tie_word_embeddings
    return sum(parameter.nbytes for parameter in model.parameters()) - (head.nbytes if twice else 0)


def in_a_process(step: str, argv: list[str], work: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, *argv, "--step", step, "--store", str(work / "store")]
    command += ["--corpus", str(work / "text.txt")]
    environment = {**os.environ, "ROMPATCH_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(found: dict[str, dict[str, Any]], weights: int, d_in: int) -> dict[str, Any]:
    """All steps, with their ratios."""
    factor, imports = 8 * d_in**2, found["imports"]
    for step in found.values():
        step["ratio"] = round((step["peak"] - imports["peak"] - factor) / weights, 3)
        step["own_ratio"] = round((step["own"] - imports["own"] - factor) / weights, 3)
    return {"weights": weights, "factor": factor, "steps": list(found.values())}


def show(result: dict[str, Any]) -> None:
    print(f"weights {result['weights'] / MIB:.0f} MiB, factor of C {result['factor'] / MIB:.0f} MiB")
    print(f"{'step':10}{'peak MiB':>10}{'own MiB':>10}{'ratio':>8}{'own':>8}")
    for step in result["steps"]:
        ratios = (" " * 16) if step["step"] == "imports" else f"{step['ratio']:8.2f}{step['own_ratio']:8.2f}"
        print(f"{step['step']:10}{step['peak'] / MIB:10.0f}{step['own'] / MIB:10.0f}{ratios}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-memory")
    parser.add_argument("--offload-folder")
    parser.add_argument("--json", type=Path, metavar="FILE")
    for hidden in ("--step", "--store", "--corpus"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.step:
        print(json.dumps(measured(args.step, args)))
        return
    from rompatch.models import locate

    model = str(locate(args.model)[1])  # fetched here, in nobody's measurement
    given = ("dtype", "device", "max_memory", "offload_folder")
    argv = [f"--{name.replace('_', '-')}={value}" for name in given if (value := getattr(args, name)) is not None]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pages = (Path(__file__).parents[1] / "docs").glob("*.md")
        (work / "text.txt").write_text("\n".join(page.read_text(encoding="utf-8") for page in sorted(pages)))
        found = {step: in_a_process(step, ["--model", model, *argv], work) for step in STEPS}
    result = report(found, found["load"].pop("weights"), found["load"].pop("d_in"))
    show(result)
    if args.json:
        args.json.write_text(json.dumps({"settings": vars(args) | {"json": str(args.json)}, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
