"""GGUF bases: dequantised once into a Hugging Face folder in the user's cache, then only that folder is read.

Equations, fingerprints and baked checkpoints need plain float tensors; unpacking at every load would cost seconds.
torch and transformers are loaded for the unpacking alone.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path

from rompatch.default_model import CACHE_VARIABLE, Progress, cache_root, file_sha256
from rompatch.errors import ModelError
from rompatch.folders import building

CONVERTER = 1
"""Counted up whenever the folder written for the same GGUF file would differ."""

SOURCE_FILE = "rompatch_source.json"


def cached_folder(gguf_sha256: str) -> Path:
    """Where the folder for a GGUF file with this hash is, or will be."""
    return cache_root() / "models" / f"{gguf_sha256[:32]}-{CONVERTER}"


def dequantised_folder(path: Path, on_progress: Progress | None = None) -> Path:
    """The Hugging Face folder (float32) of the GGUF file *path*, made first if it is not in the cache.

    Processes that convert the same file at once do not disturb each other: the first rename wins.

    Raises:
        ModelError: the file is damaged, its architecture is unknown to transformers, or the cache cannot be written.
    """
    from safetensors import SafetensorError

    note = on_progress or (lambda text: None)
    digest = file_sha256(path)
    folder = cached_folder(digest)
    if folder.is_dir():
        return folder
    note(f"dequantising {path.name} once into {folder}")
    try:
        with building(folder) as work:
            _convert(path, work)
            source = {"converter": CONVERTER, "file": path.name, "sha256": digest}
            (work / SOURCE_FILE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    except FileExistsError:
        pass  # another process was quicker; its folder has the same content
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path.name} could not be dequantised into {folder.parent}.",
            expected="space for the float32 weights, about seven times the size of a 4-bit file",
            found=str(error),
            next_step=f"Make room there, or name another folder in {CACHE_VARIABLE}.",
        ) from error
    note("dequantised")
    return folder


def _convert(path: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from rompatch.fingerprints import tokenizer_hash
    from rompatch.quiet import quiet_transformers

    # The unpacking has a progress bar of its own that no setting turns off.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.float32,
                # Without it the weights stay in GGUF blocks, which save_pretrained refuses to write.
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        except ImportError as error:  # transformers looks for gguf and accelerate only when a GGUF file is loaded
            raise ModelError(
                "A package that transformers needs for GGUF files is not installed.",
                found=" ".join(str(error).split()).rstrip("."),
                next_step="Install rompatch with its dependencies: pip install rompatch.",
            ) from error
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"The GGUF file {path} could not be read.",
                expected="a complete GGUF file of an architecture that transformers can dequantise",
                found=" ".join(str(error).split())[:300].rstrip(".") or type(error).__name__,
                next_step="Fetch the file again, or use the model's original Hugging Face folder.",
            ) from error
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        reloaded = AutoTokenizer.from_pretrained(work, local_files_only=True)
    if tokenizer_hash(reloaded) != tokenizer_hash(tokenizer):
        raise ModelError(
            f"The tokenizer in {path.name} does not come back the same after saving it.",
            next_step="Use the model's original Hugging Face folder instead of the GGUF file.",
        )
