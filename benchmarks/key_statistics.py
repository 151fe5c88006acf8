"""Key statistics against the forward pass that they need: tokens per second, the ratio, the floor, peak memory.

    python benchmarks/key_statistics.py [--model SPEC] [--layers 4 --layers 3-5] [--tokens 32768] [--json FILE]

Each round runs, for every set of layers, the bare forward pass (same windows, same batches, stopped at the highest
site, its result thrown away) and our pass (reading, forward, sums) one after the other; the figures are medians over
the rounds. Peak memory is that of a process of its own, of the pass alone. Without --corpus the text is made of the
built-in atlas, so that it runs anywhere. "By the multiplications alone" is the ratio that a sum at the forward pass's
speed would have, computing one half of the symmetric product.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rompatch.compute.collecting import BATCH_WINDOWS, SitePass, batches, collect_from_corpus, site_inputs
from rompatch.compute.corpus import Corpus, open_corpus, windows
from rompatch.compute.second_moment import BLOCK_TOKENS, PANEL_ROWS
from rompatch.compute.statistics import WINDOW, corpus_key
from rompatch.hooks import capture_inputs, until_stopped
from rompatch.models import DEFAULT_MODEL, Base, load_base
from rompatch.verify.atlas.table import fill_template, load_atlas

CHARS_PER_TOKEN = 3
"""At least; for cutting the made text to size."""


def atlas_text(n_chars: int) -> str:
    """Sentences of the atlas, every template filled with every fact, over and over up to *n_chars*."""
    lines = [
        f"{fill_template(template, fact.subject)} {fact.object}."
        for number in range(10)
        for relation in load_atlas()
        for template in relation.templates[number : number + 1]
        for fact in relation.facts
    ]
    text = "\n".join(" ".join(lines[i : i + 12]) for i in range(0, len(lines), 12)) + "\n"
    return (text * (n_chars // len(text) + 1))[:n_chars]


def layer_set(text: str) -> tuple[int, ...]:
    """ "4" or "3-5"."""
    first, _, last = text.partition("-")
    return tuple(range(int(first), int(last or first) + 1))


def bare_pass(base: Base, ids: Sequence[torch.Tensor], layer: int) -> float:
    """Seconds of the truncated forward pass alone, tokenised before."""
    start = time.perf_counter()
    for batch in ids:
        with torch.inference_mode(), capture_inputs(base.site(layer).module, stop=True), until_stopped():
            base.model(input_ids=batch, use_cache=False)
    return time.perf_counter() - start


def begun(base: Base, layers: Sequence[int], corpus: Corpus, tokens: int) -> list[SitePass]:
    """Empty sums; the keys (which hash the weights) are made before the clock runs."""
    return [SitePass.begun(site, corpus_key(base, site, corpus, tokens)) for site in map(base.site, layers)]


def our_pass(base: Base, corpus: Corpus, passes: Sequence[SitePass]) -> float:
    """Seconds of the whole pass, tokenising and the mean at its end included."""
    start = time.perf_counter()
    for _ in collect_from_corpus(base, corpus, passes):
        pass
    for one in passes:
        one.moment.mean()
    return time.perf_counter() - start


def matmul_rate(size: int = 1024) -> float:
    """Float32 multiplications and additions that one matrix product reaches here and now, FLOP/s."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def forward_flops(base: Base, layer: int, window: int) -> int:
    """Multiplications and additions a token of the truncated pass: two a weight of every linear module that it runs,
    and 4 * hidden_size a position attended to (causal: half the window)."""
    ran: list[int] = []

    def hook(module: torch.nn.Module, _args: Any, _output: Any) -> None:
        ran.append(module.weight.numel())

    linear = [module for module in base.model.modules() if type(module).__name__ in ("Linear", "Conv1D")]
    handles = [module.register_forward_hook(hook) for module in linear]
    site_inputs(base, [base.site(layer)], torch.ones(1, 2, dtype=torch.long))
    for handle in handles:
        handle.remove()
    return 2 * sum(ran) + (layer + 1) * 4 * base.hidden_size * window // 2


def sum_flops(d_in: int) -> tuple[int, int]:
    """What k k^T takes a token and a site: the symmetric half, and what our panels compute."""
    panels = sum(min(PANEL_ROWS, d_in - start) * (d_in - start) for start in range(0, d_in, PANEL_ROWS))
    return d_in * (d_in + 1), 2 * panels


def forget_peak() -> None:
    """Begin a new peak here, where the system can: loading a model may take more memory than the pass."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """The most memory that this process has had since :func:`forget_peak` (elsewhere than on Linux: ever), MB."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure_memory(spec: str, text: str, layers: Sequence[int], tokens: int, bare: bool) -> tuple[float, float]:
    """In a process of its own: the memory in use before a pass, and the peak in it."""
    base, corpus = load_base(spec), open_corpus(text)
    passes = begun(base, layers, corpus, tokens)
    ids = [batch.ids for batch in batches(windows(base.tokenizer, corpus, passes[0].key.window))]
    bare_pass(base, [ids[0][:1, :8]], max(layers))
    forget_peak()
    before = peak_mb()
    if bare:
        bare_pass(base, ids[: tokens // ids[0].numel() + 1], max(layers))
    else:
        our_pass(base, corpus, passes)
    return before, peak_mb()


def in_a_process(*args: Any) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: tuple[float, float] = pool.apply(measure_memory, args)
    return found


def measure(base: Base, corpus: Corpus, sets: Sequence[tuple[int, ...]], tokens: int, rounds: int) -> list[Any]:
    """Seconds a pass, bare and ours in turn, for every set of layers."""
    window = min(WINDOW, base.context_length)
    ids, counted = [], 0
    for batch in batches(windows(base.tokenizer, corpus, window)):
        ids.append(batch.ids)
        counted += batch.ids.numel() - len(batch.ids)
        if counted >= tokens:
            break
    bare_pass(base, ids[:1], max(map(max, sets)))  # the first pass pays for what is set up once
    seconds: dict[tuple[int, ...], list[tuple[float, float]]] = {layers: [] for layers in sets}
    rate = 0.0
    for number in range(rounds):
        for layers in sets:
            passes = begun(base, layers, corpus, counted)
            ours_first = our_pass(base, corpus, passes) if number % 2 else None
            bare = bare_pass(base, ids, max(layers))
            seconds[layers].append((bare, ours_first or our_pass(base, corpus, passes)))
            rate = max(rate, matmul_rate())
    return [report(base, layers, seconds[layers], counted, window, rate) for layers in sets]


def report(
    base: Base, layers: Sequence[int], seconds: Sequence[tuple[float, float]], tokens: int, window: int, rate: float
) -> dict[str, Any]:
    bare, ours = (statistics.median(times) for times in zip(*seconds, strict=True))
    forward = forward_flops(base, max(layers), window)
    half, panels = (sum(each) for each in zip(*(sum_flops(base.site(layer).d_in) for layer in layers), strict=True))
    return {
        "layers": list(layers),
        "tokens": tokens,
        "bare_tokens_per_second": tokens / bare,
        "tokens_per_second": tokens / ours,
        "ratio": statistics.median(our / one for one, our in seconds),
        "ratios": [our / one for one, our in seconds],
        "forward_mflop_per_token": forward / 1e6,
        "sum_mflop_per_token": panels / 1e6,
        "floor_ratio": (forward + half) / forward,
        "matmul_gflop_per_second": rate / 1e9,
        "share_of_matmul_rate": (forward + panels) * tokens / ours / rate,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--layers", type=layer_set, action="append", help="4 or 3-5; may be repeated")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--corpus", help="a text; default: sentences of the built-in atlas")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    base = load_base(args.model)
    middle = base.preset_layer
    around = tuple(layer for layer in (middle - 1, middle, middle + 1) if 0 <= layer < base.n_layers)
    sets = args.layers or [(middle,), around]
    with tempfile.TemporaryDirectory() as folder:
        text = args.corpus
        if text is None:
            text = str(Path(folder) / "atlas.txt")
            Path(text).write_text(atlas_text(CHARS_PER_TOKEN * 3 * args.tokens), encoding="utf-8")
        rows = measure(base, open_corpus(text), sets, args.tokens, args.rounds)
        for row, layers in zip(rows, sets, strict=True):
            row["loaded_mb"], row["peak_mb"] = in_a_process(args.model, text, layers, args.tokens, False)
            row["bare_peak_mb"] = in_a_process(args.model, text, layers, args.tokens, True)[1]
            row["d_in"] = base.site(layers[0]).d_in
    print(f"{torch.get_num_threads()} threads, batches of {BATCH_WINDOWS} windows, blocks of {BLOCK_TOKENS} tokens")
    for row in rows:
        print(
            f"layers {row['layers']}: bare {row['bare_tokens_per_second']:,.0f} tokens/s, ours "
            f"{row['tokens_per_second']:,.0f}, ratio {row['ratio']:.3f} "
            f"({min(row['ratios']):.3f} to {max(row['ratios']):.3f}); by the multiplications alone "
            f"{row['floor_ratio']:.3f}\n"
            f"    forward {row['forward_mflop_per_token']:.1f} MFLOP a token, sums {row['sum_mflop_per_token']:.1f}; "
            f"{row['share_of_matmul_rate']:.0%} of the matrix product's {row['matmul_gflop_per_second']:.0f} GFLOP/s\n"
            f"    peak memory {row['peak_mb']:,.0f} MB, of the bare pass {row['bare_peak_mb']:,.0f}, before the pass "
            f"{row['loaded_mb']:,.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "runs": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
