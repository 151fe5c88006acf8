"""Token sequences as a forest: what several begin with is there once. No torch here.

A causal model's state at a token depends on the tokens up to it and on the weights, so sequences that begin alike
share the run of their beginning: both objects of a prompt branch from it, and so do prompts that start with the same
words. Sequences under different weights (edits) share nothing and are in trees of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NO_EDIT = -1
"""The edit index of sequences that are run on the model as it is."""


@dataclass
class PrefixForest:
    """Nodes are tokens, numbered in order of insertion, a parent before its children.

    Args:
        tokens, parents, depths, edits: by node; the parent of a root is -1, its depth 0.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    edits: list[int] = field(default_factory=list)
    _index: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, ids: Sequence[int], edit: int = NO_EDIT) -> list[int]:
        """The nodes of the sequence *ids* under the edit number *edit*, made where they are not there yet."""
        nodes: list[int] = []
        parent = -1
        for token in ids:
            key = (edit, parent, token)
            node = self._index.get(key)
            if node is None:
                node = self._index[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(len(nodes))
                self.edits.append(edit)
            nodes.append(node)
            parent = node
        return nodes

    def path(self, node: int) -> list[int]:
        """The nodes from the root to *node*, both included."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def unedited_twins(self) -> list[int]:
        """By node, the node of the same tokens without an edit; -1 where there is none."""
        twins: list[int] = []
        for node, (token, parent, edit) in enumerate(zip(self.tokens, self.parents, self.edits, strict=True)):
            twin = twins[parent] if parent >= 0 else -1
            known = parent < 0 or twin >= 0
            twins.append(node if edit == NO_EDIT else self._index.get((NO_EDIT, twin, token), -1) if known else -1)
        return twins

    def preorder(self, wanted: Callable[[int], bool] = lambda edit: True) -> list[int]:
        """Nodes of the edits that *wanted* accepts, each right behind its parent or behind a sibling's descendants."""
        children: list[list[int]] = [[] for _ in self.tokens]
        roots = []
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(node)
            elif wanted(self.edits[node]):
                roots.append(node)
        order, stack = [], roots[::-1]
        while stack:
            node = stack.pop()
            order.append(node)
            stack += children[node][::-1]
        return order


def cut(forest: PrefixForest, order: Sequence[int], width: int) -> list[list[int]]:
    """*order* (a preorder) in pieces of at most *width* nodes, each with the ancestors of all its nodes.

    What a piece needs of an earlier one is repeated in it, so a path longer than *width* makes a longer piece.
    """
    pieces: list[list[int]] = []
    for node in order:
        if pieces and len(pieces[-1]) < width:
            pieces[-1].append(node)  # the parent is there: it was the node before, or an ancestor of it
        else:
            pieces.append(forest.path(node))
    return pieces


def even_pieces(forest: PrefixForest, order: Sequence[int], width: int) -> list[list[int]]:
    """As :func:`cut`, with the least width that needs no more pieces: they come out nearly equal in size."""
    pieces = cut(forest, order, width)
    narrow, step = len(order) // max(1, len(pieces)), max(1, width // 32)
    for smaller in range(narrow, width, step):
        candidate = cut(forest, order, smaller)
        if len(candidate) <= len(pieces):
            return candidate
    return pieces


def leaf_paths(forest: PrefixForest, order: Sequence[int]) -> list[list[int]]:
    """The paths to all nodes of *order* that nothing in it continues: one plain sequence each."""
    inner = {forest.parents[node] for node in order}
    return [forest.path(node) for node in order if node not in inner]
