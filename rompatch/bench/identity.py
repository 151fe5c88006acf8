"""What a run's numbers depend on: two runs are the same exactly if all of this is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import rompatch
from rompatch.bench.running import Setting
from rompatch.bench.texts import TOP_K, WRITTEN_TOKENS
from rompatch.patch import canonical_json
from rompatch.store.patches import base_id
from rompatch.verify.suite import SUITE_VERSION

_CODE = ("*.py", "compute/**/*.py", "apply/*.py", "verify/**/*.py", "bench/running.py", "bench/texts.py")
"""The modules that make the numbers; commands and reports do not."""


def settings_of(
    setting: Setting, *, benchmark: str, method: str, dataset: str, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the numbers of a run depend on, as a JSON object.

    Args:
        dataset: sha256 of the file of records.
        more: facts of this benchmark by name, "generation" (true or false) among them.
    """
    statistics = setting.statistics
    generation = {"tokens": WRITTEN_TOKENS, "top_k": TOP_K} if more.get("generation") else None
    return {
        **more,
        "generation": generation,
        "benchmark": benchmark,
        "method": method,
        "dataset": dataset,
        "base": base_id(setting.base.ref()),
        "layer": setting.site.layer,
        "parameter": setting.site.parameter_name,
        "weight": setting.site.ref().sha256,
        "hparams": asdict(setting.hparams),
        "statistics": None if statistics is None else statistics.ref(setting.hparams.ridge).id,
        "more_statistics": [
            one.statistics.ref(setting.hparams.ridge).id for one in setting.below if one.statistics is not None
        ],
        "contexts": hashlib.sha256(canonical_json(list(setting.contexts)).encode()).hexdigest(),
        "seed": setting.seed,
        "document_start": setting.document_start,
        "suite_version": SUITE_VERSION,
        "code": code_version(),
    }


@cache
def code_version() -> str:
    """This rompatch's version, and a hash of the modules that make the numbers: checkouts change between versions."""
    package, digest = Path(rompatch.__file__).parent, hashlib.sha256()
    for path in sorted({path for pattern in _CODE for path in package.glob(pattern)}):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return f"{rompatch.__version__}+{digest.hexdigest()[:12]}"
