"""What a ``--model`` means: a local folder, a GGUF file, an alias or a hub id, as the folder it is read from.

Loads neither torch nor transformers, unless a GGUF file has to be dequantised first.
"""

from __future__ import annotations

from pathlib import Path

from rompatch.default_model import ALIASES, NOT_ASKED, Progress, is_hub_id, packaged_gguf, unknown_model
from rompatch.errors import ModelError
from rompatch.gguf_cache import cached_folder, dequantised_folder


def locate(spec: str, on_progress: Progress | None = None) -> tuple[str, Path]:
    """What to call the base that *spec* names, and the folder it is read from, fetched first where need be.

    Raises:
        UnknownModelError, DownloadError, ModelError: as :func:`rompatch.models.load_base`.
    """
    note = on_progress or (lambda text: None)
    path = Path(spec).expanduser()
    if path.is_dir():
        return path.resolve().name, path.resolve()
    if path.is_file():
        return path.name, dequantised_folder(_gguf_file(path), note)
    if spec in ALIASES:
        folder = cached_folder(ALIASES[spec].gguf_sha256)
        return spec, folder if folder.is_dir() else dequantised_folder(packaged_gguf(spec, note), note)
    if is_hub_id(spec):
        from rompatch.hub import hub_folder

        downloaded, why = hub_folder(spec, note)
        if downloaded is not None:
            return spec, downloaded
    else:
        why = NOT_ASKED
    raise unknown_model(spec, why)


def _gguf_file(path: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return path.resolve()
    raise ModelError(
        f"{path} is not a model file that rompatch can read.",
        expected="a GGUF file, or a Hugging Face folder",
        found=f"a file that begins with {magic!r}",
        next_step="For a checkpoint, name the folder that its config.json is in.",
    )
