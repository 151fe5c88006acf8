"""The running sum of k k^T, the arithmetic of C.

Keys are gathered into blocks. A block's product is taken in float32, where the machine is fast, and added in float64:
the sum runs over hundreds of thousands of tokens, where float32 alone loses the small directions that C^-1 enlarges.
The product is symmetric, so only its upper block triangle is computed, in panels of rows: with p panels that is
(p + 1) / 2p of the whole product's d_in^2 multiplications a token, close to a syrk's half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rompatch.errors import StatisticsError

BLOCK_TOKENS = 4096
"""Keys per block: from here on the product runs at full speed and adding it in float64 takes 3 % of its time."""
PANEL_ROWS = 256
"""Rows of a panel: narrower ones save less in multiplications than they lose in speed."""
_NARROW = 64
"""Keys shorter than this are multiplied in float64: some processors' kernels for small matrices add a block's tokens up
one after another, which loses digits, and at this size nothing is saved by float32."""


class SecondMoment:
    """A running sum of k k^T over ``count`` keys: ``total`` of whole blocks, and the ``pending`` keys since.

    Args:
        d_in: length of a key.

    Attributes:
        total: (d_in, d_in) float64, the upper block triangle; what is below it stays zero.
        count: keys added so far, those pending included.
    """

    def __init__(self, d_in: int) -> None:
        self.total = torch.zeros(d_in, d_in, dtype=torch.float64)
        self.count = 0
        self._block = torch.empty(BLOCK_TOKENS, d_in)
        self._in_block = 0

    @classmethod
    def resumed(cls, total: Tensor, pending: Tensor, count: int) -> SecondMoment:
        """One that goes on from the three attributes of another, and rounds as if it were that one.

        Raises:
            ValueError: they do not belong together.
        """
        d_in = len(total)
        whole = count - len(pending)
        if total.shape != (d_in, d_in) or total.dtype != torch.float64:
            raise ValueError("a total that is no square of float64")
        if pending.dim() != 2 or pending.shape[1] != d_in or pending.dtype != torch.float32:
            raise ValueError("keys of another length or dtype than the total's")
        if whole < 0 or whole % BLOCK_TOKENS or len(pending) >= BLOCK_TOKENS:
            raise ValueError("a count that is not one of whole blocks and the keys behind them")
        moment = cls(0)
        moment.total, moment.count = total, count
        moment._block = torch.empty(BLOCK_TOKENS, d_in)
        moment._block[: len(pending)] = pending
        moment._in_block = len(pending)
        return moment

    @property
    def pending(self) -> Tensor:
        """The keys of the block that is not full yet, (fewer than :data:`BLOCK_TOKENS`, d_in) float32."""
        return self._block[: self._in_block]

    def add(self, keys: Tensor) -> None:
        """Add the rows of *keys*, (n_tokens, d_in). How they come in pieces does not change the sum: blocks are full.

        Raises:
            StatisticsError: a full block's sum is not finite.
        """
        rows = keys.to("cpu", torch.float32)
        self.count += len(rows)
        while len(rows):
            part = rows[: BLOCK_TOKENS - self._in_block]
            self._block[self._in_block : self._in_block + len(part)] = part
            self._in_block += len(part)
            rows = rows[len(part) :]
            if self._in_block == BLOCK_TOKENS:
                self._fold()

    def _fold(self) -> None:
        keys = self.pending.double() if len(self.total) < _NARROW else self.pending
        for start in range(0, len(self.total), PANEL_ROWS):
            stop = start + PANEL_ROWS
            self.total[start:stop, start:] += (keys[:, start:stop].T @ keys[:, start:]).float()
        self._in_block = 0
        if not torch.isfinite(self.total.diagonal()).all():  # a sum of squares: nothing can hide from it
            raise StatisticsError(
                "The site's inputs are not finite on this text.",
                expected="finite keys",
                found=f"NaN or infinity among the first {self.count:,} tokens",
                next_step="Load the base with --dtype float32.",
            )

    def mean(self) -> Tensor:
        """E[k k^T] so far, (d_in, d_in) float32, exactly symmetric.

        Raises:
            StatisticsError: no key was added, or the sum is not finite.
        """
        if self.count == 0:
            raise StatisticsError("No token was read.", next_step="Give --corpus a file with text in it.")
        self._fold()
        mean = torch.empty(self.total.shape)
        for rows, total in zip(mean.split(PANEL_ROWS), self.total.split(PANEL_ROWS), strict=True):
            rows.copy_(total / self.count)  # by panels: a second matrix in float64 would be the peak of the memory
        upper = mean.triu(1)
        return mean.triu_().add_(upper.T)
