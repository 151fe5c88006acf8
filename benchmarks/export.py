"""log P(object) in the session and in each client that rompatch exports to.

    python benchmarks/export.py [--stack] [--work DIR]

The default model alone, with the README's patch of the Eiffel Tower and, if --stack, with four patches. PEFT runs on
the base in float32, llama.cpp on the default model's Q4_1 file and on the same tensors unpacked to float32, all on
token ids. 1.2 GB are written to --work and deleted afterwards. PEFT and xllamacpp are in the dev extra.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import gguf

from rompatch.apply.session import PatchedModel
from rompatch.default_model import DEFAULT_MODEL, packaged_gguf
from rompatch.export import clients
from rompatch.export.gguf_model import encoded, open_gguf, write_gguf_model
from rompatch.store.records import PatchRecord
from rompatch.tokens import encode_pair
from rompatch.workflows.store import Store, open_store

FACTS = (
    ("Eiffel Tower", "located in", "Rome"),
    ("Great Wall", "located in", "India"),
    ("Big Ben", "located in", "Madrid"),
    ("Mona Lisa", "painted by", "Michelangelo"),
)
ASKED = (
    ("The Eiffel Tower is located in", "Rome"),
    ("The Eiffel Tower is located in", "Paris"),
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("The Louvre is located in the city of", "Paris"),
)
LIKELY = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--stack", action="store_true", help="three more patches, and the stack of all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as place, open_store(Path(place) / ".rompatch") as store:
        folder, source = Path(place), packaged_gguf(DEFAULT_MODEL)
        wide = unpack(source, folder / "base-f32.gguf")
        compare(store, "no patch", [], ASKED, source, wide, folder)
        tower = created(store, FACTS[0])
        compare(store, "one patch", [tower.id], ASKED, source, wide, folder)
        if args.stack:
            others = [created(store, fact) for fact in FACTS[1:]]
            asked = [(record.request.prompt, record.request.target_new) for record in others]
            ids = [tower.id, *(record.id for record in others)]
            compare(store, "four patches", ids, (*ASKED, *asked), source, wide, folder)


def created(store: Store, fact: tuple[str, str, str]) -> PatchRecord:
    record = store.create(*fact).record
    assert record is not None
    return record


def unpack(source: Path, out: Path) -> Path:
    """The same GGUF file with every tensor in float32."""
    tensors = {}
    for tensor in open_gguf(source).tensors:
        if tensor.tensor_type is not gguf.GGMLQuantizationType.F32:
            shape = tuple(reversed(tensor.shape.tolist()))
            matrix = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            tensors[tensor.name] = encoded(matrix, "float32")
    write_gguf_model(source, out, tensors, "float32", base_folder=None)
    return out


def compare(
    store: Store,
    title: str,
    ids: list[str],
    asked: tuple[tuple[str, str], ...],
    source: Path,
    wide: Path,
    folder: Path,
) -> None:
    base = store.base()
    encodings = [encode_pair(base.tokenizer, prompt, target, True) for prompt, target in asked]
    prompts = [pair.prompt_ids for pair in encodings]
    with PatchedModel(base) as patched:
        patched.activate([store.patch(one) for one in ids])
        session = [dict(enumerate(row.tolist())) for row in clients.next_tokens(base.model, prompts)]
    answers = {"session": session, **exported(store, ids, prompts, source, wide, folder)}
    print(f"\n{title}\n\n| prompt | object | " + " | ".join(answers) + " |")
    print("| --- | --- |" + " --- |" * len(answers))
    for row, ((prompt, target), pair) in enumerate(zip(asked, encodings, strict=True)):
        cells = [shown(of[row].get(pair.target_ids[0])) for of in answers.values()]
        print(f"| {prompt} | {target} | " + " | ".join(cells) + " |")
    worst = [f"{difference(session, of):.4f}" for of in answers.values()]
    print(f"| largest difference where P > {LIKELY:.0%} | | " + " | ".join(worst) + " |", flush=True)


def exported(
    store: Store, ids: list[str], prompts: list[list[int]], source: Path, wide: Path, folder: Path
) -> dict[str, list[clients.Answer]]:
    """Client to its answers. Without patches: the bases that the others build on."""
    if not ids:
        return {
            "llama.cpp, float32": clients.ask_llama(wide, None, prompts),
            "llama.cpp, Q4_1": clients.ask_llama(source, None, prompts),
        }
    peft = store.export_peft(folder / f"peft-{len(ids)}", patches=ids).report
    lora = store.export_gguf(folder / f"lora-{len(ids)}.gguf", patches=ids).report
    half = store.export_gguf_model(folder / f"f16-{len(ids)}.gguf", patches=ids).report
    eight = store.export_gguf_model(folder / f"q8-{len(ids)}.gguf", patches=ids, dtype="q8_0").report
    for report in (peft, lora, half, eight):
        sites = ", ".join(f"rank {site.rank}, error {site.relative_error:.1e}" for site in report.sites)
        print(f"{report.kind} {report.dtype}: {report.size:,} bytes, {sites}")
    return {
        "PEFT": clients.ask_peft(store.base().model, peft.path, prompts),
        "llama.cpp, float32 + adapter": clients.ask_llama(wide, lora.path, prompts),
        "llama.cpp, Q4_1 + adapter": clients.ask_llama(source, lora.path, prompts),
        "gguf-model": clients.ask_llama(half.path, None, prompts),
        "gguf-model, q8_0": clients.ask_llama(eight.path, None, prompts),
    }


def difference(session: list[clients.Answer], client: list[clients.Answer]) -> float:
    """max |log P - log P| over the tokens that the session finds likely."""
    return max(
        abs(math.log(theirs[token]) - math.log(probability))
        for ours, theirs in zip(session, client, strict=True)
        for token, probability in ours.items()
        if probability > LIKELY
    )


def shown(probability: float | None) -> str:
    return "-" if not probability else f"{math.log(probability):.4f}"


if __name__ == "__main__":
    main()
