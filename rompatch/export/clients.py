"""The programs that exports are for, run on token ids: what they say comes next. Each is optional.

A client answers with the probabilities of tokens after each prompt: of the whole vocabulary, or of the likeliest ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rompatch.errors import OutputError
from rompatch.sites import is_transposed

if TYPE_CHECKING:
    from peft import PeftModel

Answer = dict[int, float]
"""Token id to its probability as the next token."""

TOP = 200
"""How many of the likeliest tokens llama.cpp is asked for."""


def next_tokens(model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Probability of every token after each prompt, (vocab,), float32; for a model on the processor."""
    with torch.inference_mode():
        rows = [model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1] for ids in prompts]
    return [row.float().softmax(-1) for row in rows]


def installed(package: str) -> str | None:
    """The version of *package*, None where it is not installed."""
    return metadata.version(package) if util.find_spec(package) is not None else None


def ask_peft(model: PreTrainedModel, folder: Path, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """PEFT with the adapter in *folder* on the live base *model*, which is as it was afterwards."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever PEFT warns about shows in the numbers
        wrapped = PeftModel.from_pretrained(model, str(folder))
        try:
            return [_whole(row) for row in next_tokens(wrapped, prompts)]
        finally:
            wrapped.unload()


def ask_delta(model: PreTrainedModel, path: Path, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """Plain torch: the factors of the delta file at *path* added to the weights of *model*, and taken out again."""
    factors = load_file(path)
    names = sorted(name.removesuffix(".left") for name in factors if name.endswith(".left"))
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].data for name in names}
    try:
        for name, weight in before.items():
            delta = factors[f"{name}.left"].double() @ factors[f"{name}.right"].double()
            module = name.removesuffix(".weight")
            oriented = delta.T if is_transposed(model.get_submodule(module), module) else delta
            parameters[name].data = (weight.double() + oriented).to(weight.dtype)
        return [_whole(row) for row in next_tokens(model, prompts)]
    finally:
        for name, weight in before.items():
            parameters[name].data = weight


def ask_llama(
    base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], *, scale: float = 1.0
) -> list[Answer]:
    """llama.cpp with the GGUF file *base* and *adapter*, in a process of its own: it ends the process on bad files.

    Args:
        scale: what llama.cpp multiplies the adapter's update by.

    Raises:
        OutputError: it does not load them.
    """
    asked = {"base": str(base), "adapter": None if adapter is None else str(adapter), "scale": scale, "top": TOP}
    done = subprocess.run(
        [sys.executable, "-m", "rompatch.export.llamacpp"],
        input=json.dumps(asked | {"prompts": [list(ids) for ids in prompts]}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OutputError(
            f"llama.cpp does not load {base.name}" + (f" with the adapter {adapter}." if adapter else "."),
            found=" ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}",
            next_step="Look whether the GGUF file is of the patches' own base.",
        )
    return [{int(token): p for token, p in answer.items()} for answer in json.loads(done.stdout)]


def _whole(row: Tensor) -> Answer:
    return dict(enumerate(row.tolist()))
