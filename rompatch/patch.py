"""A patch is a value: a header that says what it is, and the factors of its low-rank update, one set per site.

Nothing here imports torch: factors are NumPy float32 arrays. NumPy itself is imported where numbers are touched, so
that the ledger and ``rompatch log``, which need headers only, answer at once. Two equal patches have equal ids, whoever
computed them and in whatever order: the id is the sha256 of the canonical content, no time stamps (docs/format.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from rompatch.edits import EditRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT_VERSION = 1
"""Of patches that answer an edit request and bring keys: five tensors a site."""

ADAPTER_VERSION = 2
"""Of patches that have a title instead and bring no keys: an imported adapter, two tensors a site."""

SOLVED_VERSION = 3
"""Of patches that answer an edit request and are solved alone as they are in stacks: four tensors a site."""

SHORT_ID = 12
"""Hex digits that name a patch in tables and messages."""

TENSOR_NAMES = ("base_out", "key", "u", "v", "value")
"""The tensors of one site in format 1, in canonical order."""

SOLVED_NAMES = ("base_out", "key", "u", "value")
"""The tensors of one site in format 3, in canonical order."""

LOW_RANK_NAMES = ("left", "right")
"""The tensors of one site in format 2, in canonical order."""

Array: TypeAlias = "npt.NDArray[np.float32]"
"""A float32 array; quoted, because an alias is evaluated on import."""


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, UTF-8 kept, NaN refused (``ValueError``)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class BaseRef:
    """The base a patch belongs to, by content.

    Args:
        source: how the user named it (an alias, a hub id, a folder's name); for people, not for checks.
        model_type: the ``model_type`` of its configuration.
        config_hash: sha256 of the canonical configuration.
        tokenizer_hash: sha256 of what the tokenizer does.
        dtype: dtype the base was loaded in ("float32", "float16", "bfloat16").
    """

    source: str
    model_type: str
    config_hash: str
    tokenizer_hash: str
    dtype: str


@dataclass(frozen=True)
class SiteRef:
    """One weight matrix of the base, by name and by content.

    Args:
        layer: index of the decoder layer.
        parameter: full parameter name ("model.layers.4.mlp.down_proj.weight").
        d_out, d_in: the matrix as the equations see it, W of shape (d_out, d_in).
        transposed: True where the module stores W^T (Conv1D).
        dtype: the tensor's dtype in the base.
        sha256: sha256 of the base's tensor: its bytes as stored, row-major.
    """

    layer: int
    parameter: str
    d_out: int
    d_in: int
    transposed: bool
    dtype: str
    sha256: str


@dataclass(frozen=True)
class StatisticsRef:
    """Which key statistics C were used: their id, tokens counted, the text's name, and the ridge added on top."""

    id: str
    tokens: int
    corpus: str
    ridge: float


@dataclass(frozen=True, eq=False)
class SiteFactors:
    """What is needed to apply a patch at one site, alone or in a stack.

    ``key`` and ``u`` (n_keys, d_in), ``value`` and ``base_out`` (n_keys, d_out), ``v`` (d_out,). Each row of ``key``
    is one constraint ``W' key_i = value_i`` for the joint solution, with ``base_out_i = W key_i`` and
    ``u_i = C^-1 key_i``. Row 0 is the mean key k* (eq. 7), row 1 the bare prompt's key. ``value`` and ``base_out`` do
    not contain the module's bias.

    The update of the patch alone is ``Delta = v u_0^T`` (eq. 5 and 22); in format 3, where ``v`` is None, the joint
    solution of its own constraints.
    """

    u: Array
    v: Array | None
    key: Array
    value: Array
    base_out: Array

    def tensors(self) -> dict[str, Array]:
        """The arrays by name, C-contiguous float32, little-endian: five, or four in format 3."""
        import numpy as np

        names = SOLVED_NAMES if self.v is None else TENSOR_NAMES
        return {name: np.ascontiguousarray(getattr(self, name), dtype="<f4") for name in names}


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """A patch without keys at one site: Delta = ``left`` (d_out, r) @ ``right`` (r, d_in).

    There is no constraint in it that a joint solution could hold, so it meets other patches by plain addition.
    """

    left: Array
    right: Array

    def tensors(self) -> dict[str, Array]:
        """Both arrays by name, C-contiguous float32, little-endian."""
        import numpy as np

        return {name: np.ascontiguousarray(getattr(self, name), dtype="<f4") for name in LOW_RANK_NAMES}


Factors: TypeAlias = SiteFactors | LowRankFactors
"""What a patch brings to one site."""


@dataclass(frozen=True)
class PatchHeader:
    """Everything about a patch except its numbers. Reading it needs no torch.

    A patch has either a ``request`` (formats 1 and 3) or, where it answers none, a ``title`` (format 2). ``statistics``
    are those of the first site; ``more_statistics`` (format 3), one for each of the other sites, in their order.
    """

    method: str
    hparams: Mapping[str, Any]
    request: EditRequest | None
    base: BaseRef
    sites: tuple[SiteRef, ...]
    contexts: tuple[str, ...]
    seed: int
    document_start: bool
    statistics: StatisticsRef | None
    versions: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    title: str | None = None
    more_statistics: tuple[StatisticsRef, ...] = ()

    @property
    def subject(self) -> str:
        """What the patch is found by: the subject s of its request, or its title."""
        return self.title or "" if self.request is None else self.request.subject

    @property
    def label(self) -> str:
        """What the patch does, for people: ``Eiffel Tower -> Rome``, or its title."""
        return self.subject if self.request is None else f"{self.subject} -> {self.request.target_new}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :func:`canonical_json` of it is what a patch file carries as metadata."""
        about = {
            "request": None if self.request is None else self.request.to_json(),
            "title": self.title,
            "more_statistics": [dict(vars(one)) for one in self.more_statistics] or None,
        }
        return {
            **{name: value for name, value in about.items() if value is not None},
            "base": dict(vars(self.base)),
            "contexts": list(self.contexts),
            "document_start": self.document_start,
            "format_version": self.format_version,
            "hparams": dict(self.hparams),
            "method": self.method,
            "seed": self.seed,
            "sites": [dict(vars(site)) for site in self.sites],
            "statistics": None if self.statistics is None else dict(vars(self.statistics)),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PatchHeader:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, RequestError: a field is missing or of the wrong kind (``patchfile`` turns these into
                a ``PatchFileError`` that names the file).
        """
        statistics, title = data["statistics"], data.get("title")
        return cls(
            method=str(data["method"]),
            hparams=dict(data["hparams"]),
            request=EditRequest.from_json(data["request"]) if title is None else None,
            base=BaseRef(**data["base"]),
            sites=tuple(SiteRef(**site) for site in data["sites"]),
            contexts=tuple(str(context) for context in data["contexts"]),
            seed=int(data["seed"]),
            document_start=bool(data["document_start"]),
            statistics=None if statistics is None else StatisticsRef(**statistics),
            versions=dict(data["versions"]),
            format_version=int(data["format_version"]),
            title=title,
            more_statistics=tuple(StatisticsRef(**one) for one in data.get("more_statistics", ())),
        )


@dataclass(frozen=True, eq=False)
class Patch:
    """One named change of one base, immutable. ``factors[i]`` belongs to ``header.sites[i]``."""

    header: PatchHeader
    factors: tuple[Factors, ...]

    def named_tensors(self) -> dict[str, Array]:
        """``site.<n>.<name>`` to array, in canonical order."""
        return {
            f"site.{index}.{name}": array
            for index, factors in enumerate(self.factors)
            for name, array in factors.tensors().items()
        }

    @cached_property
    def id(self) -> str:
        """64 hex digits: :func:`content_id` of this patch."""
        return content_id(canonical_json(self.header.to_json()), self.named_tensors())

    @property
    def short_id(self) -> str:
        """The first twelve hex digits of :attr:`id`."""
        return self.id[:SHORT_ID]

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Patch) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)


def content_id(header: str, tensors: Mapping[str, Array]) -> str:
    """sha256 over the canonical content, independent of the container (docs/format.md, "The id").

    The digest runs over the UTF-8 header, then, for each tensor in ascending order of name, one line
    ``\\n<name> <shape as d0xd1> f32\\n`` followed by its little-endian row-major bytes.
    """
    import numpy as np

    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], dtype="<f4")
        shape = "x".join(str(size) for size in array.shape)
        digest.update(f"\n{name} {shape} f32\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
