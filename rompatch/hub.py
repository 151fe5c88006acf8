"""A hub id becomes a local folder: what is in the hub's own cache already, else a download of configuration, tokenizer
and weights. Pickled weights are fetched only where a repository has no safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from rompatch.default_model import Progress

PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "*.safetensors"]
"""What a checkpoint consists of; folders inside a repository hold other forms of the same model."""


def hub_folder(repo: str, note: Progress) -> tuple[Path | None, str]:
    """The local folder of *repo*, or None and the reason in a few words."""
    note(f"looking for {repo} on the hub")
    bars = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(repo, allow_patterns=PATTERNS, ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo, allow_patterns=[*PATTERNS, "*.bin"], ignore_patterns=["*/*"]))
    except GatedRepoError:
        return None, "found, but its licence must be accepted and a token given (hf auth login)"
    except RepositoryNotFoundError:
        return None, "no such repository, or a private one"
    except LocalEntryNotFoundError:
        return None, "cannot be reached from here, and the model is not in its local cache"
    except (HfHubHTTPError, OSError, ValueError) as error:
        return None, " ".join(str(error).split())[:200]
    finally:
        if bars:
            enable_progress_bars()
    return folder, ""
