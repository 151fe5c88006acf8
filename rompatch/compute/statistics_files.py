"""Key statistics on disk: the user's cache, interrupted passes, and the ones that come with the package.

A cached file is safetensors with ``second_moment`` (d_in, d_in) float32 and one metadata key ``statistics`` of
canonical JSON. A shipped file holds a half-precision triangle instead: the Cholesky factor of C with unit rows and
their scale in float32. Rounding a factor keeps C positive definite; rounding C itself would not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import Statistics, StatisticsKey, cholesky_factor
from rompatch.compute.tensor_files import write_tensors
from rompatch.errors import AmbiguousIdError, OutputError, StatisticsError
from rompatch.patch import SHORT_ID, canonical_json

_METADATA = "statistics"
_SHIPPED = Path(__file__).parent / "data"
_SHIPPED_RIDGE = 1e-6
"""Ridge under which a factor is taken for shipping; far below any ridge that an edit uses."""


@dataclass(frozen=True)
class StatisticsFile:
    """A file of statistics: its key, tokens and size, without the matrix."""

    path: Path
    key: StatisticsKey
    tokens: int
    size: int
    shipped: bool
    provenance: dict[str, Any]

    @property
    def id(self) -> str:
        """The key's hash."""
        return self.key.id

    def to_json(self) -> dict[str, Any]:
        """What ``stats list --json`` prints."""
        return {
            "id": self.id,
            "parameter": self.key.parameter,
            "corpus": self.key.corpus,
            "corpus_id": self.key.corpus_id,
            "tokens": self.tokens,
            "dtype": self.key.dtype,
            "window": self.key.window,
            "size": self.size,
            "shipped": self.shipped,
            "path": str(self.path),
            "provenance": self.provenance,
        }


class StatisticsCache:
    """Statistics in one folder of the user's cache, plus the shipped ones."""

    def __init__(self, folder: Path, shipped: Path = _SHIPPED) -> None:
        self.folder = folder
        self._shipped = shipped

    def files(self) -> Iterator[StatisticsFile]:
        """All of them, shipped first, then by name; an id that is shipped and cached once, as shipped.

        Damaged files are left out; :meth:`load` of one says why.
        """
        seen: set[str] = set()
        for folder, shipped in ((self._shipped, True), (self.folder, False)):
            for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
                try:
                    file = _describe(path, shipped)
                except StatisticsError:
                    continue
                if file.id not in seen:
                    seen.add(file.id)
                    yield file

    def find(self, key: StatisticsKey) -> StatisticsFile | None:
        """The file with exactly this key."""
        return next((file for file in self.files() if file.key == key), None)

    def best_for(self, key: StatisticsKey) -> StatisticsFile | None:
        """The best for the site that *key* names: real text before self-sampled, then the most tokens."""
        candidates = [file for file in self.files() if file.key.site_fields() == key.site_fields()]
        return max(candidates, key=lambda f: (not f.key.corpus_id.startswith("seed"), f.tokens, f.id), default=None)

    def resolve(self, prefix: str) -> StatisticsFile:
        """The file whose id starts with *prefix*.

        Raises:
            StatisticsError: none does.
            AmbiguousIdError: several do.
        """
        found = [file for file in self.files() if file.id.startswith(prefix.lower())]
        if not found:
            raise StatisticsError(
                f"No key statistics have the id {prefix!r}.", next_step="List them with `rompatch stats list`."
            )
        if len(found) > 1:
            names = ", ".join(file.id[:SHORT_ID] for file in found)
            raise AmbiguousIdError(f"The id {prefix!r} names several statistics.", found=names)
        return found[0]

    def load(self, file: StatisticsFile) -> Statistics:
        """The matrix too.

        Raises:
            StatisticsError: the file is damaged or its values are not finite.
        """
        with _opened(file.path) as handle:
            names = set(handle.keys())
            if names == {"second_moment"}:
                matrix = handle.get_tensor("second_moment")
            elif names == {"triangle", "scale"}:
                triangle, scale = handle.get_tensor("triangle"), handle.get_tensor("scale")
                if scale.dim() != 1 or triangle.shape != (len(scale) * (len(scale) + 1) // 2,):
                    raise _damaged(file.path, f"a triangle of shape {tuple(triangle.shape)}")
                matrix = unpack_factor(triangle, scale)
            else:
                raise _damaged(file.path, f"tensors {sorted(names)}")
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not torch.isfinite(matrix).all():
            raise _damaged(file.path, "a matrix that is not square or not finite")
        return Statistics(file.key, matrix, file.tokens, factor_files=self)

    def save(self, statistics: Statistics, provenance: dict[str, Any] | None = None) -> StatisticsFile:
        """Write *statistics* (atomically) and forget the interrupted pass that led to them."""
        path = self._path(statistics.key)
        write_tensors(path, {"second_moment": statistics.second_moment}, _metadata(statistics, provenance or {}))
        self.remove_partial(statistics.key)
        return _describe(path, shipped=False)

    def remove(self, file: StatisticsFile) -> Path:
        """Delete a cached file, and the factors taken from it; of a shipped one, the copy in the cache. Returns the
        path of what was deleted.

        Raises:
            StatisticsError: it came with the package, and the cache has no copy.
            OutputError: the file cannot be deleted.
        """
        cached = self._path(file.key) if file.shipped else file.path
        if file.shipped and not cached.exists():
            raise StatisticsError(f"The statistics {file.id[:SHORT_ID]} come with rompatch and cannot be removed.")
        try:
            for path in (cached, *self.folder.glob(f"{file.id}.*.factor")):
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise OutputError(f"The key statistics in {cached} cannot be removed.", found=str(problem)) from problem
        return cached

    def load_factor(self, key: StatisticsKey, ridge: float) -> Tensor | None:
        """chol(C + ridge ...) as :meth:`save_factor` left it; None where there is none or it is damaged."""
        path = self._factor_path(key, ridge)
        if not path.exists():
            return None
        try:
            with _opened(path) as handle:
                factor: Tensor = handle.get_tensor("factor")
        except (StatisticsError, SafetensorError, KeyError):
            return None
        usable = factor.dtype == torch.float64 and factor.dim() == 2 and bool(torch.isfinite(factor).all())
        return factor if usable else None

    def save_factor(self, key: StatisticsKey, ridge: float, factor: Tensor) -> None:
        """Keep chol(C + ridge ...), (d_in, d_in) float64, beside the statistics."""
        write_tensors(self._factor_path(key, ridge), {"factor": factor.contiguous()}, {})

    def _path(self, key: StatisticsKey) -> Path:
        return self.folder / f"{key.id}.safetensors"

    def _factor_path(self, key: StatisticsKey, ridge: float) -> Path:
        return self.folder / f"{key.id}.ridge-{ridge:g}.factor"

    def save_partial(self, key: StatisticsKey, moment: SecondMoment, done: int) -> None:
        """Keep an interrupted pass: its sum and pending keys as they are (so that going on rounds as never stopping),
        how many tokens they count and how much of the text was read (``SitePass.done``).

        Raises:
            OutputError: it cannot be written; an earlier one is as it was.
        """
        state = {"id": key.id, "done": done, "count": moment.count}
        tensors = {"total": moment.total, "pending": moment.pending}
        write_tensors(self._partial_path(key), tensors, {_METADATA: canonical_json(state)})

    def load_partial(self, key: StatisticsKey, d_in: int) -> tuple[SecondMoment, int] | None:
        """The interrupted pass with this key, as :meth:`save_partial` took it; None where there is none.

        Raises:
            StatisticsError: there is one that cannot be gone on from: damaged, of another version, of another site.
        """
        path = self._partial_path(key)
        if not path.exists():
            return None
        with _opened(path) as handle:
            try:
                state = json.loads((handle.metadata() or {})[_METADATA])
                total, pending = handle.get_tensor("total").clone(), handle.get_tensor("pending")
                done, count = int(state["done"]), int(state["count"])
                moment = SecondMoment.resumed(total, pending, count)
                if state["id"] != key.id or len(total) != d_in:
                    raise ValueError("a pass for another site or text")
                if done < 1 or not 1 <= count <= key.tokens:
                    raise ValueError(f"{count} tokens in {done} windows")
                if not torch.isfinite(total).all() or not torch.isfinite(pending).all():
                    raise ValueError("values that are not finite")
            except (SafetensorError, KeyError, TypeError, ValueError) as problem:
                raise _damaged(path, str(problem)) from problem
        return moment, done

    def remove_partial(self, key: StatisticsKey) -> None:
        """Forget the interrupted pass with this key, where there is one."""
        self._partial_path(key).unlink(missing_ok=True)

    def _partial_path(self, key: StatisticsKey) -> Path:
        return self.folder / f"{key.id}.partial"


def pack_factor(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """C as a half-precision triangle: rows of chol(C) scaled to unit length, (d_in * (d_in + 1) / 2,) float16, and the
    lengths, (d_in,) float32. 2.4 MB at d_in = 1536 instead of 9.4."""
    factor = cholesky_factor(second_moment, _SHIPPED_RIDGE)
    scale = factor.norm(dim=1)
    rows, columns = torch.tril_indices(*factor.shape)
    return (factor / scale[:, None])[rows, columns].half(), scale.float()


def unpack_factor(triangle: Tensor, scale: Tensor) -> Tensor:
    """The inverse of :func:`pack_factor`: C, (d_in, d_in) float32."""
    factor = torch.zeros(len(scale), len(scale), dtype=torch.float64)
    rows, columns = torch.tril_indices(*factor.shape)
    factor[rows, columns] = triangle.double()
    factor *= scale.double()[:, None]
    return (factor @ factor.T).float()


def write_packed(statistics: Statistics, path: Path, provenance: dict[str, Any]) -> None:
    """Write *statistics* in the shipped form."""
    triangle, scale = pack_factor(statistics.second_moment)
    write_tensors(path, {"scale": scale, "triangle": triangle}, _metadata(statistics, provenance))


def _metadata(statistics: Statistics, provenance: dict[str, Any]) -> dict[str, str]:
    content = {"key": asdict(statistics.key), "tokens": statistics.tokens, "provenance": provenance}
    return {_METADATA: canonical_json(content)}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as problem:
        raise _damaged(path, str(problem)) from problem


def _damaged(path: Path, found: str) -> StatisticsError:
    return StatisticsError(
        f"The key statistics in {path} cannot be used.",
        expected="a file written by `rompatch stats build`",
        found=found,
        next_step="Delete that file; the statistics are built anew when needed.",
    )


def _describe(path: Path, shipped: bool) -> StatisticsFile:
    with _opened(path) as handle:
        metadata = handle.metadata() or {}
    try:
        content = json.loads(metadata[_METADATA])
        key = StatisticsKey.from_json(content["key"])
        tokens, provenance = int(content["tokens"]), dict(content["provenance"])
    except (KeyError, TypeError, ValueError) as problem:
        raise _damaged(path, f"metadata without {problem}") from problem
    return StatisticsFile(path, key, tokens, path.stat().st_size, shipped, provenance)
