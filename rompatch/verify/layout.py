"""How a forest of token sequences is laid out in the rows of a forward pass.

Packed: a row holds a piece of the forest, each token sees its own ancestors only (a mask over pairs of tokens) and
has the position of its depth. No padding but at the end of a row, and shared beginnings run once. It needs a model
that takes such masks and positions, which :mod:`rompatch.verify.abilities` tries out.

Plain: a row holds one sequence; rows of nearly equal length go together, so that padding stays under a tenth. Every
causal model can run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rompatch.tokens import pad
from rompatch.verify.prefix_tree import PrefixForest, even_pieces, leaf_paths

PACKED_WIDTH = 128
"""Tokens of a packed row: attention is quadratic in it, and cutting a tree repeats the ancestors at the cut."""

PADDING = 0.1
"""Share of padding in a batch of plain rows that is put up with."""


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass: ``rows[i][j]`` is the node at token j of row i. Padding is on the right."""

    rows: list[list[int]]
    packed: bool

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))

    @property
    def n_tokens(self) -> int:
        """Tokens that run, padding among them."""
        return len(self.rows) * self.width

    def nodes(self) -> Tensor:
        """The node at each token, (n_rows, width), -1 where there is padding."""
        nodes = torch.full((len(self.rows), self.width), -1, dtype=torch.long)
        for row, found in zip(nodes, self.rows, strict=True):
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        return nodes

    def inputs(self, forest: PrefixForest, pad_id: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Keyword arguments for the model's forward pass."""
        padded = pad([[forest.tokens[node] for node in row] for row in self.rows], pad_id, side="right")
        if not self.packed:
            return {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask}
        nodes = self.nodes()
        depths = torch.tensor(forest.depths, dtype=torch.long)[nodes.clamp(min=0)]
        mask = torch.zeros((len(self.rows), 1, self.width, self.width), dtype=dtype)
        mask.masked_fill_(~self._visible(forest)[:, None], torch.finfo(dtype).min)
        return {
            "input_ids": padded.input_ids,
            "attention_mask": mask,
            "position_ids": torch.where(nodes < 0, 0, depths),
        }

    def _visible(self, forest: PrefixForest) -> Tensor:
        """Which token of a row each one sees, (n_rows, width, width): its ancestors and itself; padding, itself."""
        visible = np.zeros((len(self.rows), self.width, self.width), dtype=bool)
        visible[:, range(self.width), range(self.width)] = True
        for row, seen in zip(self.rows, visible, strict=True):
            column = {node: j for j, node in enumerate(row)}
            for j, node in enumerate(row):
                parent = forest.parents[node]
                if parent >= 0:
                    seen[j] |= seen[column[parent]]
        return torch.from_numpy(visible)


@dataclass(frozen=True)
class Limits:
    """What one forward pass may hold.

    Args:
        max_tokens: rows times longest row, padding among them; a single longer row still runs.
        max_scored: tokens whose logits are kept.
    """

    max_tokens: int
    max_scored: int


def packed_batches(
    forest: PrefixForest, order: Sequence[int], scored: frozenset[int], limits: Limits, width: int = PACKED_WIDTH
) -> Iterator[Batch]:
    """Packed rows of *order* (a preorder of the forest or of some of its trees)."""
    pieces = even_pieces(forest, order, min(width, limits.max_tokens))
    return (Batch(rows, packed=True) for rows in _grouped(pieces, scored, limits, padding=1.0))


def plain_batches(
    forest: PrefixForest, order: Sequence[int], scored: frozenset[int], limits: Limits
) -> Iterator[Batch]:
    """Whole sequences, the longest first."""
    rows = sorted(leaf_paths(forest, order), key=len, reverse=True)
    return (Batch(group, packed=False) for group in _grouped(rows, scored, limits, PADDING))


def _grouped(
    rows: Sequence[list[int]], scored: frozenset[int], limits: Limits, padding: float
) -> Iterator[list[list[int]]]:
    """Cut *rows* into groups within *limits*, padding at most that share of a group."""
    group: list[list[int]] = []
    width = n_real = n_scored = 0
    for row in rows:
        longest, real, kept = max(width, len(row)), n_real + len(row), n_scored + len(scored.intersection(row))
        total = longest * (len(group) + 1)
        if group and (total > limits.max_tokens or kept > limits.max_scored or total - real > padding * total):
            yield group
            group, longest, real, kept = [], len(row), len(row), len(scored.intersection(row))
        group.append(row)
        width, n_real, n_scored = longest, real, kept
    if group:
        yield group
