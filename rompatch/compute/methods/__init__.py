"""Editing methods: each one a neighbour with the same shape, ``compute(base, request, ...) -> Computation``.

``METHODS`` is the registry; the conformance suite in ``tests/conformance/`` runs over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rompatch.compute.methods import rome
from rompatch.compute.methods.base import Computation


@dataclass(frozen=True)
class Method:
    """A registered method: its name in patch headers, its title, its paper, and the function."""

    name: str
    title: str
    paper: str
    compute: Callable[..., Computation]


METHODS: dict[str, Method] = {
    method.name: method for method in (Method("rome", "Rank-One Model Editing", "arXiv 2202.05262", rome.compute),)
}
