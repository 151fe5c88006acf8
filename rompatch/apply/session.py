"""A live model with a stack of patches in it, restored on exit."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from transformers import PreTrainedModel

from rompatch.apply.solve import JOINT_RIDGE, canonical, materialise, solve_stack
from rompatch.errors import BaseMismatchError, PatchNotFoundError
from rompatch.models import Base
from rompatch.offload import WeightSlot
from rompatch.patch import SHORT_ID, Patch, SiteRef
from rompatch.sites import Site, site_of_parameter, tensor_sha256


class PatchedModel:
    """Patches in a transformers model: activate a stack, change it, take it back.

    The base's tensors are kept, never written to: an edited weight is a new tensor in the parameter's place, and
    restoring puts the base's own tensor back, bit for bit. Where accelerate offloads the weight, the edited tensor
    takes its place in memory; what is offloaded stays as it is. Use it as a context manager, or call :meth:`restore`.

        with PatchedModel(rompatch.wrap(model, tokenizer)) as patched:
            patched.activate([patch])
            patched.model.generate(...)

    Args:
        base: the model with its tokenizer (:func:`rompatch.models.load_base` or :func:`rompatch.models.wrap`).
        ridge: lambda of the joint solution for stacks of two and more.
    """

    def __init__(self, base: Base, *, ridge: float = JOINT_RIDGE) -> None:
        self.base = base
        self.ridge = ridge
        self._patches: list[Patch] = []
        self._slots: dict[str, tuple[Site, WeightSlot]] = {}
        self._hashes: dict[str, str] = {}

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, with the active stack in its weights."""
        return self.base.model

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The active stack, in canonical order."""
        return tuple(self._patches)

    def activate(self, patches: Iterable[Patch]) -> None:
        """Make *patches* the stack, whatever it was before. Everything is checked and computed before a weight changes.

        Raises:
            BaseMismatchError: a patch was computed for another tensor or another tokenizer.
            SiteError: the model has no such parameter.
            ComputeError: the stack cannot be solved.
        """
        stack = canonical(patches)
        for patch in stack:
            self._check(patch)
        updates = solve_stack(stack, self.ridge)
        edited = {
            parameter: materialise(slot.stored(), update, transposed=site.transposed)
            for parameter, update in updates.items()
            for site, slot in [self._slots[parameter]]
        }
        for parameter, (_, slot) in self._slots.items():
            slot.exchange(edited[parameter]) if parameter in edited else slot.restore()
        self._patches = stack

    def apply(self, patch: Patch) -> None:
        """Add *patch* to the stack. Raises what :meth:`activate` raises."""
        self.activate([*self._patches, patch])

    def revert(self, patch_id: str) -> None:
        """Take the patch with this id (or unambiguous prefix) out of the stack.

        Raises:
            PatchNotFoundError: it is not active.
        """
        matching = [patch for patch in self._patches if patch.id.startswith(patch_id)]
        if len(matching) != 1:
            active = ", ".join(patch.short_id for patch in self._patches) or "none"
            raise PatchNotFoundError(f"No single active patch has the id {patch_id!r}.", found=f"active: {active}")
        self.activate(patch for patch in self._patches if patch is not matching[0])

    def restore(self) -> None:
        """Put the base's own tensors back: the model is as it was."""
        for _, slot in self._slots.values():
            slot.restore()
        self._patches = []

    def __enter__(self) -> PatchedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _check(self, patch: Patch) -> None:
        header = patch.header
        if header.base.tokenizer_hash != self.base.tokenizer_hash:
            raise _mismatch(patch, "tokenizer", header.base.tokenizer_hash, self.base.tokenizer_hash, self.base.source)
        for ref in header.sites:
            self._remember(ref)
            found = self._hashes[ref.parameter]
            if found != ref.sha256:
                raise _mismatch(patch, ref.parameter, ref.sha256, found, self.base.source)

    def _remember(self, ref: SiteRef) -> None:
        if ref.parameter in self._slots:
            return
        site = site_of_parameter(self.model, ref)
        slot = WeightSlot(site.module)
        self._hashes[ref.parameter] = tensor_sha256(slot.stored())
        self._slots[ref.parameter] = (site, slot)


def _mismatch(patch: Patch, what: str, expected: str, found: str, source: str) -> BaseMismatchError:
    return BaseMismatchError(
        f"Patch {patch.short_id} was computed for {patch.header.base.source} ({patch.header.base.dtype}), "
        f"whose {what} differs from that of {source}.",
        expected=f"fingerprint {expected[:SHORT_ID]}",
        found=found[:SHORT_ID],
        next_step="Load the base that the patch names, in the same dtype, or compute the fact anew on this one.",
        patch_id=patch.id,
        what=what,
    )
