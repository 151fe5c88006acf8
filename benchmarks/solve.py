"""Solving and materialising a large synthetic stack, against the least that it could take.

    python benchmarks/solve.py [--patches 1000] [--d-out 4096] [--d-in 14336] [--json FILE]

Rank-one patches (one key each) with random keys and C diagonal, on a random float32 W. One process; every step is timed
once after the data are there, its memory is the most that was resident during it, above what was before. The floor, in
the same run: one pass over W (read and written), and the LU solution of an m x m matrix with d_out right-hand sides.
Neither contains the product of rank m, 2 d_out m d_in operations, which any materialised form computes (its line is
"product", in float64 and in float32); the overlay does not. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from rompatch.apply.forecast import update_norm
from rompatch.apply.gram import constraints_of
from rompatch.apply.overlay import Overlay, Rows, overlaid
from rompatch.apply.solve import materialise, merge_same_keys, solve_constraints, solve_site
from rompatch.patch import SiteFactors

MIB = 1 << 20
NAME = "site.weight"
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--d-out", type=int, default=4096)
    parser.add_argument("--d-in", type=int, default=14336)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    m, d_out, d_in = args.patches, args.d_out, args.d_in
    rng = np.random.default_rng(0)
    stack = factors(rng, m, d_out, d_in)
    linear = torch.nn.Linear(d_in, d_out, bias=False, dtype=torch.float32).requires_grad_(False)
    weight = linear.weight.data
    lines: list[dict[str, Any]] = []

    def measure(name: str, run: Callable[[], T]) -> T:
        reset_peak()
        before, started = resident("VmRSS"), time.perf_counter()
        found = run()
        seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
        lines.append({"step": name, "seconds": seconds, "peak_mib": peak / MIB})
        print(f"{name:<44} {seconds:8.3f} s {peak / MIB:8.0f} MiB", flush=True)
        return found

    print(f"{m} patches, W {d_out} x {d_in} ({weight.nbytes / MIB:.0f} MiB), {torch.get_num_threads()} threads")
    square, right_hand = rng.standard_normal((m, m)) + 10 * np.sqrt(m) * np.eye(m), rng.standard_normal((m, d_out))
    measure("floor: one pass over W", lambda: weight + 1.0)
    measure("floor: m^3 solve, float64", lambda: np.linalg.solve(square, right_hand))
    constraints = measure(
        "keys to float64, grouped (Gram matrix)", lambda: merge_same_keys(list(map(constraints_of, stack)))
    )
    measure("solve, Gram matrix at hand", lambda: solve_constraints(constraints, 0.03))
    update = measure("solve_site: all of the above", lambda: solve_site(stack))
    print(f"||Delta|| {update_norm(update):.4g}, ||W|| {float(weight.norm()):.4g}")
    wide = torch.from_numpy(update.left), torch.from_numpy(update.right)
    narrow = wide[0].float(), wide[1].float()
    measure("product, float64, 512 rows at a time", lambda: in_blocks(*wide))
    measure("product, float32, 512 rows at a time", lambda: in_blocks(*narrow))
    edited = measure("materialise (float64 sums)", lambda: materialise(weight, update, transposed=False))
    single = measure("the same with a float32 product", lambda: torch.addmm(weight, *narrow))
    exact_rows = weight[:64].double() + wide[0][:64] @ wide[1]
    for name, found in (("materialise", edited), ("float32 product", single)):
        share = float((found[:64].double() - exact_rows).norm() / exact_rows.norm())
        print(
            f"relative error of {name}: {share:.2e}; entries off the correctly rounded: "
            f"{100 * float((found[:64] != exact_rows.float()).float().mean()):.3f} %"
        )
    overlay = measure("overlay: make", lambda: Overlay.of({NAME: update}))
    with torch.inference_mode():
        for tokens in (1, 32):
            inputs = torch.randn(1, tokens, d_in)
            linear(inputs)
            plain = measure(f"module, {tokens} tokens", lambda inputs=inputs: linear(inputs))  # type: ignore[misc]
            with overlaid(linear, {NAME: linear}, Rows(overlay)):
                linear(inputs)
                beside = measure(f"module with the overlay, {tokens} tokens", lambda inputs=inputs: linear(inputs))  # type: ignore[misc]
            inside = torch.nn.functional.linear(inputs, edited)
            print(f"overlay against materialised: {float((beside - inside).norm() / (inside - plain).norm()):.1e}")
    if args.json:
        args.json.write_text(json.dumps({"patches": m, "d_out": d_out, "d_in": d_in, "steps": lines}, indent=2) + "\n")


def factors(rng: np.random.Generator, m: int, d_out: int, d_in: int) -> list[SiteFactors]:
    """Keys of random numbers, C diagonal, residuals of the length of outputs."""
    inverse = (1 / rng.uniform(0.5, 2, d_in)).astype(np.float32)
    stack = []
    for _ in range(m):
        key = rng.standard_normal((1, d_in), dtype=np.float32)
        residual = rng.standard_normal((1, d_out), dtype=np.float32)
        u = key * inverse
        v = residual[0] / float(u[0] @ key[0])
        stack.append(SiteFactors(u=u, v=v, key=key, value=residual, base_out=np.zeros_like(residual)))
    return stack


def in_blocks(left: torch.Tensor, right: torch.Tensor) -> None:
    for rows in left.split(512):
        rows @ right


def resident(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
