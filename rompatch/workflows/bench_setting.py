"""What a benchmark is told, and what all its records share: base, layer, hyper-parameters, contexts, statistics."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rompatch.errors import RequestError
from rompatch.workflows.method_options import METHOD, EditSetting, MethodOptions, edit_setting
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.statistics import statistics_below, statistics_for

if TYPE_CHECKING:
    from rompatch.bench.running import Setting
    from rompatch.bench.tasks import Shard
    from rompatch.bench.texts import TextMeasurer
    from rompatch.verify.texts import TextFile
    from rompatch.verify.zsre import Taught

MAX_NAME = 100


@dataclass(frozen=True)
class BenchOptions(MethodOptions):
    """What ``bench`` may be told beside base and method.

    Args:
        limit: only the first so many records of the file.
        shard: only this part of them, "2/4".
        name: what the run is called; a name belongs to one run.
        strict: stop at the first record that fails, instead of recording the failure and going on.
        retry: try the records again that failed before.
        generation: let the model write after the generation prompts (GE; RS with *references*). Slow.
        references, essence: files of texts (:mod:`rompatch.verify.texts`).
        teach: of zsRE records: the true "answer" (the ROME paper) or the "alternative" (EasyEdit).
        method: "rome".
    """

    limit: int | None = None
    shard: str | None = None
    name: str | None = None
    strict: bool = False
    retry: bool = False
    generation: bool = False
    references: Path | None = None
    essence: Path | None = None
    teach: Taught = "answer"
    method: str = METHOD


@dataclass(frozen=True)
class Texts:
    """The files of texts and their hashes; None where none was named."""

    references: TextFile | None = None
    essence: TextFile | None = None
    hashes: Mapping[str, str | None] = field(default_factory=dict)


def text_files(options: BenchOptions) -> Texts:
    """The files of texts that *options* name.

    Raises:
        SuiteError: one cannot be read, or holds no texts.
    """
    from rompatch.default_model import file_sha256
    from rompatch.verify.texts import load_texts

    paths = {"references": options.references, "essence": options.essence}
    loaded = {name: None if path is None else load_texts(path) for name, path in paths.items()}
    hashes = {name: None if path is None else file_sha256(path) for name, path in paths.items()}
    return Texts(loaded["references"], loaded["essence"], hashes)


def make_setting(store: OpenStore, options: BenchOptions, texts: Texts) -> tuple[Setting, str]:
    """The base, loaded, and everything else that all records share, as ``create`` would choose it; and where the
    defaults come from."""
    from rompatch.bench.running import Setting
    from rompatch.compute.contexts import sample_contexts

    chosen = edit_setting(store, options)
    base, site, seed = chosen.base, chosen.site, chosen.seed
    measurer = _measurer(chosen, texts, options)
    statistics = statistics_for(base, site, options.statistics, seed, store.reporter)
    contexts = sample_contexts(base.model, base.tokenizer, seed)
    below = statistics_below(base, statistics, chosen.below, options.statistics, seed, store.reporter)
    setting = Setting(base, site, below, contexts, statistics, chosen.hparams, seed, chosen.document_start, measurer)
    return setting, chosen.preset


def _measurer(chosen: EditSetting, texts: Texts, options: BenchOptions) -> TextMeasurer | None:
    from rompatch.bench.texts import TextMeasurer

    if not options.generation and texts.essence is None:
        return None
    return TextMeasurer(
        chosen.base,
        document_start=chosen.document_start,
        seed=chosen.seed,
        generation=options.generation,
        references=texts.references,
        about=texts.essence,
    )


def check_options(options: BenchOptions) -> Shard:
    """What can be refused before anything is read."""
    from rompatch.bench.tasks import Shard

    if options.limit is not None and options.limit < 1:
        raise RequestError("The limit must be at least 1.", found=options.limit)
    if options.method != METHOD:
        raise RequestError(f"There is no method {options.method!r}.", expected=METHOD)
    if options.references is not None and not options.generation:
        raise RequestError(
            "Reference texts are compared with what the model writes, and it does not write anything here.",
            next_step="Add --generation, or leave --references out.",
        )
    name = options.name
    if name is not None and (
        not name.strip() or len(name) > MAX_NAME or any(unicodedata.category(char).startswith("C") for char in name)
    ):
        raise RequestError(f"{name[:40]!r} is no name for a run.", expected=f"1 to {MAX_NAME} visible characters")
    return Shard() if options.shard is None else Shard.parse(options.shard)
