"""``adapter_config.json`` of a PEFT LoRA: what it says, and what of it no patch can hold.

Fields that we know either matter here, or change training alone. Any other field that is switched on may change what
the adapter does in a way that we do not compute, so it is refused by name, whatever PEFT adds in later versions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.errors import AdapterError
from rompatch.patchfile.checks import DamageError, check_values, parse_json

CONFIG = "adapter_config.json"
_MAX_BYTES = 1 << 20

_OF_TRAINING = frozenset(
    {
        *{"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"},
        *{"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"},
        *{"megatron_core", "loftq_config", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"},
        *{"fan_in_fan_out", "velora_config"},
    }
)
"""Fields that do not change what the finished tensors mean. Which modules they are for, the tensors' names say; how a
module stores its weight, its type says (``fan_in_fan_out``)."""

_KNOWN = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"})
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base's weights: the adapter alone is not the difference to the base."""

_PLAIN_PATTERN = re.compile(r"\^?[\w.\\|()-]{1,200}\$?", re.ASCII)
"""Names, joined by dots and bars. Patterns with quantifiers are refused: they could take forever."""


@dataclass(frozen=True)
class LoraConfig:
    """What of the configuration the tensors' meaning depends on; PEFT's words."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_name: str | None

    def rank(self, module: str) -> int:
        """r of the module of that name."""
        return int(self.rank_pattern.get(_matching(self.rank_pattern, module), self.r))

    def scale(self, module: str) -> float:
        """What B A is multiplied by: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return float(alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def read_config(folder: Path) -> LoraConfig:
    """The configuration of the adapter in *folder*.

    Raises:
        AdapterError: it is missing or damaged, or the adapter is more than a plain LoRA.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AdapterError(f"{path} is too large.", expected=f"at most {_MAX_BYTES} bytes")
        values = parse_json(path.read_text(encoding="utf-8"), f"its {CONFIG}")
        check_values(values)
    except DamageError as error:
        raise AdapterError(f"The adapter in {folder} cannot be used: {error.problem}.", next_step=_ASK) from None
    except UnicodeDecodeError:
        raise AdapterError(
            f"The adapter in {folder} cannot be used: its {CONFIG} is not UTF-8.", next_step=_ASK
        ) from None
    except OSError as error:
        raise AdapterError(
            f"There is no PEFT adapter in {folder}: {CONFIG} cannot be read ({error.strerror or error}).",
            expected=f"a folder with {CONFIG} and adapter_model.safetensors",
            next_step="Name the folder that PEFT's save_pretrained wrote.",
        ) from error
    _refuse_other_kinds(folder, values)
    return _config(folder, values)


_ASK = "Ask where it comes from, or save it again with PEFT's save_pretrained."


def refused(folder: Path, what: str, found: object = None, next_step: str | None = None) -> AdapterError:
    """The error for an adapter that is no plain LoRA."""
    return AdapterError(
        f"The adapter in {folder} cannot be imported: {what}.",
        expected="a plain LoRA, W + scale B A on Linear or Conv1D modules",
        found=found,
        next_step=next_step or "Merge it into the base with PEFT instead, and use that checkpoint as a base.",
    )


def _refuse_other_kinds(folder: Path, values: Mapping[str, Any]) -> None:
    if str(values.get("peft_type", "")).upper() != "LORA":
        raise refused(folder, "it is of another kind", values.get("peft_type"))
    if values.get("bias", "none") != "none" or values.get("lora_bias"):
        raise refused(folder, "it changes biases", values.get("bias"))
    if values.get("use_dora"):
        raise refused(folder, "it is a DoRA, which depends on the norms of the weights")
    if values.get("modules_to_save"):
        raise refused(folder, "it replaces whole modules", values["modules_to_save"])
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise refused(
            folder,
            f"its training began with {start!r}, which changes the base's own weights",
            next_step="Convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...).",
        )
    known = _OF_TRAINING | _KNOWN | {"bias", "lora_bias", "use_dora", "modules_to_save"}
    for name in sorted(values.keys() - known):
        if values[name] not in (None, False, "", 0) and values[name] != [] and values[name] != {}:
            raise refused(folder, f"its {name} is set, and rompatch does not know what that does", values[name])


def _config(folder: Path, values: Mapping[str, Any]) -> LoraConfig:
    patterns = {name: values.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, pattern in patterns.items():
        if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
            raise refused(folder, f"its {name} is no object of positive numbers", pattern, _ASK)
        for key in pattern:
            if not _PLAIN_PATTERN.fullmatch(key) or not _compiles(key):
                raise refused(folder, f"a name in its {name} is too general to be looked for", key, _ASK)
    r, alpha, rslora = values.get("r"), values.get("lora_alpha"), values.get("use_rslora", False)
    ranks = [r, *patterns["rank_pattern"].values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks) or not _is_number(alpha) or type(rslora) is not bool:
        raise refused(folder, "r, lora_alpha or use_rslora is not what it should be", (r, alpha, rslora), _ASK)
    base = values.get("base_model_name_or_path")
    base_name = base if isinstance(base, str) else None
    return LoraConfig(int(r or 0), float(alpha or 0), rslora, **patterns, base_name=base_name)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value < 1e9


def _compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return False
    return True


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The pattern that PEFT takes for *module*: the first that matches its end, from a dot on."""
    return next((one for one in patterns if re.match(rf"(.*\.)?({one})$", module)), module)
