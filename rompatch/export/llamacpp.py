"""``python -m rompatch.export.llamacpp``: llama.cpp asked for next tokens. JSON on stdin, JSON on stdout.

In: ``{"base", "adapter" or null, "scale", "top", "prompts": [[token ids]]}``.
Out: for each prompt token id to probability.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def answer(asked: dict[str, Any]) -> list[dict[int, float]]:
    """Load the model once, ask it for one token after each prompt, and return what it finds likeliest."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["base"]
    params.n_ctx = max(64, max(map(len, asked["prompts"]), default=0) + 8)
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.fit_params = False
    params.verbosity = 0
    if asked["adapter"] is not None:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = asked["adapter"], asked["scale"]
        params.lora_adapters = [adapter]
    server = xllamacpp.Server(params)
    return [_one(server, ids, asked["top"]) for ids in asked["prompts"]]


def _one(server: Any, ids: list[int], top: int) -> dict[int, float]:
    wanted = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": top, "n_probs": top}
    told = server.handle_completions(wanted)
    (first,) = told["choices"][0]["logprobs"]["content"]
    return {int(token["id"]): math.exp(token["logprob"]) for token in first["top_logprobs"]}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
