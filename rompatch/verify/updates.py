"""Edits as terms beside the weights: each token of a batch under its own edit, no weight touched.

An edit changes W into W + left @ right at its sites, so the site's output for an input x grows by left @ (right @ x).
Adding that to the output of the unedited module gives what the edited weight gives, and tokens of one batch may each
have another edit. In half precision the edited weight is rounded and this term is not: the two differ by that rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor, nn

from rompatch.errors import ComputeError, SiteError
from rompatch.sites import Site

Matrix: TypeAlias = "Tensor | npt.NDArray[Any]"


@dataclass(frozen=True, eq=False)
class SiteTerm:
    """The update of one site: ``left`` (d_out, m) @ ``right`` (m, d_in), as the stack's solution gives them (for a
    single patch v and u^T).

    Raises:
        SiteError: they do not fit the site.
        ComputeError: they are not finite. In a batch they would spoil the scores of other edits.
    """

    site: Site
    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        found = tuple(self.left.shape), tuple(self.right.shape)
        rank = found[1][0] if found[1] else 0
        if found != ((self.site.d_out, rank), (rank, self.site.d_in)):
            raise SiteError(
                f"The update does not fit the site {self.site.module_name}.",
                expected=f"({self.site.d_out}, m) and (m, {self.site.d_in})",
                found=f"{found[0]} and {found[1]}",
                next_step="Load the base that the patch names.",
            )
        if not (self.left.isfinite().all() and self.right.isfinite().all()):
            raise ComputeError(
                f"The update of {self.site.module_name} is not finite.",
                expected="finite numbers",
                found="nan or infinity",
                next_step="Compute the patch anew.",
            )

    @classmethod
    def of(cls, site: Site, left: Matrix, right: Matrix) -> SiteTerm:
        """From arrays or tensors of any float dtype; kept in float32. Raises what the class raises."""
        return cls(site, *(torch.as_tensor(part, dtype=torch.float32) for part in (left, right)))


Edit = Sequence[SiteTerm]
"""One edit: a term for each site that it changes."""


def lowest_layer(edits: Sequence[Edit]) -> int | None:
    """The lowest layer that one of *edits* changes; None where there are none."""
    return min((term.site.layer for edit in edits for term in edit), default=None)


@contextmanager
def adding(edits: Sequence[Edit], edit_of: Tensor) -> Iterator[None]:
    """Add to every edited site's output, while the context lasts, the term of each token's edit.

    Args:
        edits: by number.
        edit_of: the number of each token's edit, (n_tokens,) row by row over the batch; -1 for none.
    """
    present = set(edit_of.unique().tolist())
    by_module: dict[nn.Module, list[tuple[int, SiteTerm]]] = {}
    for number, edit in enumerate(edits):
        for term in edit if number in present else ():
            by_module.setdefault(term.site.module, []).append((number, term))
    with ExitStack() as stack:
        for module, terms in by_module.items():
            handle = module.register_forward_hook(_hook(terms, edit_of))
            stack.callback(handle.remove)
        yield


def _hook(terms: Sequence[tuple[int, SiteTerm]], edit_of: Tensor) -> Any:
    right = torch.cat([term.right for _, term in terms])
    left = torch.cat([term.left for _, term in terms], dim=1)
    numbers = [number for number, term in terms for _ in range(len(term.right))]
    own = edit_of.cpu()[:, None] == torch.tensor(numbers)

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # float32 also in half precision: the term is added as exactly as one rounding of the output allows.
        device = output.device
        read = args[0].reshape(len(edit_of), -1).to(right.dtype) @ right.to(device).T
        term = (read * own.to(device)) @ left.to(device).T
        total: Tensor = output.to(term.dtype) + term.reshape(output.shape)
        return total.to(output.dtype)

    return hook
