"""A live model with a stack of patches in it, restored on exit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from rompatch.apply.overlay import Overlay, Overlays, Rows
from rompatch.apply.solve import JOINT_RIDGE, canonical, materialise, solve_stack
from rompatch.errors import BaseMismatchError, ConflictError, PatchNotFoundError, RequestError, SiteError
from rompatch.models import Base
from rompatch.offload import WeightSlot
from rompatch.patch import SHORT_ID, Patch, SiteRef
from rompatch.sites import Site, site_of_parameter, tensor_sha256

Form = Literal["materialised", "overlay"]
"""A stack in the weights, or beside them."""

_SOLVED_STACKS = 64
"""Solutions that are kept for the next request with the same stack."""


class PatchedModel:
    """Patches in a transformers model: activate a stack, change it, take it back.

    The base's tensors are kept, never written to: an edited weight is a new tensor in the parameter's place, and
    restoring puts the base's own tensor back, bit for bit. Where accelerate offloads the weight, the edited tensor
    takes its place in memory; what is offloaded stays as it is. Use it as a context manager, or call :meth:`restore`.

        with PatchedModel(rompatch.wrap(model, tokenizer)) as patched:
            patched.activate([patch])
            patched.model.generate(...)

    As an overlay the stack runs beside the weights, which stay the base's; :meth:`using` chooses one for the calls of
    one thread, or for each row of a batch (docs/serving.md). Every method may be called from any thread.

    Args:
        base: the model with its tokenizer (:func:`rompatch.models.load_base` or :func:`rompatch.models.wrap`).
        ridge: lambda of the joint solution for stacks of two and more.
        quantised: the model's weights are a quantised copy of those that the patches were computed for. Their hashes
            cannot be compared then, names, shapes and the tokenizer are; only overlays fit such a model.
    """

    def __init__(self, base: Base, *, ridge: float = JOINT_RIDGE, quantised: bool = False) -> None:
        self.base = base
        self.ridge = ridge
        self.quantised = quantised
        self._patches: list[Patch] = []
        self._form: Form = "materialised"
        self._slots: dict[str, tuple[Site, WeightSlot]] = {}
        self._hashes: dict[str, str] = {}
        self._modules: dict[str, nn.Module] = {}
        self._overlays = Overlays(base.model)
        self._solved: OrderedDict[tuple[str, ...], Overlay] = OrderedDict()
        self._lock = threading.RLock()
        self._users = 0

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, with the active stack in it."""
        return self.base.model

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The active stack, in canonical order."""
        return tuple(self._patches)

    @property
    def form(self) -> Form:
        """Whether the active stack is in the weights or beside them."""
        return self._form

    def activate(self, patches: Iterable[Patch], form: Form | None = None) -> None:
        """Make *patches* the stack, whatever it was before. Everything is checked and computed before a weight changes.

        Args:
            form: "materialised" computes the weights anew: a pass over each of them now, nothing afterwards. "overlay"
                adds a product of low rank to each call of the edited modules: hardly anything now. None keeps the
                form of the stack before (materialised at first; overlay where the base is quantised).

        Raises:
            BaseMismatchError: a patch was computed for another tensor or another tokenizer.
            SiteError: the model has no such parameter.
            ComputeError: the stack cannot be solved.
            ConflictError: weights shall change while another thread is inside :meth:`using`.
        """
        with self._lock:
            form = self._wanted(form)
            stack = canonical(patches)
            for patch in stack:
                self._check(patch)
            if form == "overlay":
                overlay = self._overlay(stack)
                self._refuse_users(changes=bool(self._patches) and self._form == "materialised")
                self._restore_weights()
                self._attach(stack)
                self._overlays.set_default(overlay)
            else:
                self._refuse_users(changes=True)
                self._materialise(stack)
                self._overlays.set_default(None)
            self._patches, self._form = stack, form

    def apply(self, patch: Patch) -> None:
        """Add *patch* to the stack. Raises what :meth:`activate` raises."""
        with self._lock:
            self.activate([*self._patches, patch])

    def revert(self, patch_id: str) -> None:
        """Take the patch with this id (or unambiguous prefix) out of the stack.

        Raises:
            PatchNotFoundError: it is not active.
        """
        with self._lock:
            matching = [patch for patch in self._patches if patch.id.startswith(patch_id)]
            if len(matching) != 1:
                active = ", ".join(patch.short_id for patch in self._patches) or "none"
                raise PatchNotFoundError(f"No single active patch has the id {patch_id!r}.", found=f"active: {active}")
            self.activate(patch for patch in self._patches if patch is not matching[0])

    def restore(self) -> None:
        """Put the base's own tensors back and take every hook away: the model is as it was. Threads that are inside
        :meth:`using` keep their stacks until they leave; the last one takes the hooks away."""
        with self._lock:
            self._restore_weights()
            self._overlays.set_default(None)
            self._patches = []
            self._release_hooks()

    @contextmanager
    def using(
        self, patches: Iterable[Patch] | None = None, *, rows: Sequence[Iterable[Patch] | None] | None = None
    ) -> Iterator[PreTrainedModel]:
        """The model with another stack than the active one, for the calls of this thread (or asyncio task) alone.

            with patched.using([patch]) as model:
                model.generate(...)
            with patched.using(rows=[first_stack, None, third_stack]) as model:
                model(**batch_of_three)

        As overlays: several threads may be inside at the same time, each with its own stack, and each is rid of it at
        the end of its context, also after an exception. Contexts nest; the inner one counts.

        Args:
            patches: the stack; empty gives the base.
            rows: instead, a stack for each row of the batches to come; None for the base.

        Raises:
            BaseMismatchError, SiteError, ComputeError: as :meth:`activate`; nothing has changed then.
            ConflictError: the active stack is in the weights, so that there is no base to add to.
            RequestError: both *patches* and *rows* are given, or neither.
        """
        if (patches is None) == (rows is None):
            raise RequestError("Name one stack for all rows, or one for each row.", expected="patches, or rows=[...]")
        with self._lock:
            if self._patches and self._form == "materialised":
                raise ConflictError(
                    "The active stack is in the weights, so another one cannot run beside them.",
                    expected="a stack that was activated as an overlay, or none",
                    next_step='Activate it with form="overlay", or call restore() first.',
                )
            self._users += 1
        try:
            with self._lock:
                chosen = Rows(self._prepared(patches)) if rows is None else Rows(each=tuple(map(self._prepared, rows)))
            with self._overlays.using(chosen):
                yield self.model
        finally:
            with self._lock:
                self._users -= 1
                self._release_hooks()

    def __enter__(self) -> PatchedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _wanted(self, form: Form | None) -> Form:
        if form not in ("materialised", "overlay", None):
            raise RequestError(f"There is no form {form!r} of a stack.", expected="materialised or overlay")
        if form == "materialised" and self.quantised:
            raise ConflictError(
                "A stack cannot be put into quantised weights.",
                expected='form="overlay"',
                next_step="Bake it into the unquantised base, and quantise that, if it must be in the weights.",
            )
        return form or ("overlay" if self.quantised else self._form)

    def _materialise(self, stack: list[Patch]) -> None:
        updates = solve_stack(stack, self.ridge)
        edited = {
            parameter: materialise(slot.stored(), update, transposed=site.transposed)
            for parameter, update in updates.items()
            for site, slot in [self._slots[parameter]]
        }
        for parameter, (_, slot) in self._slots.items():
            slot.exchange(edited[parameter]) if parameter in edited else slot.restore()

    def _restore_weights(self) -> None:
        for _, slot in self._slots.values():
            slot.restore()

    def _release_hooks(self) -> None:
        if not self._users and not self._patches:
            self._overlays.detach()

    def _refuse_users(self, *, changes: bool) -> None:
        if changes and self._users:
            raise ConflictError(
                "The weights cannot change now: somebody runs a stack of their own beside them.",
                found=f"{self._users} contexts of using()",
                next_step='Wait until they have ended, or activate with form="overlay".',
            )

    def _prepared(self, patches: Iterable[Patch] | None) -> Overlay | None:
        if patches is None:
            return None
        stack = canonical(patches)
        for patch in stack:
            self._check(patch)
        overlay = self._overlay(stack)
        self._attach(stack)
        return overlay

    def _overlay(self, stack: list[Patch]) -> Overlay:
        key = tuple(patch.id for patch in stack)
        if key not in self._solved:
            self._solved[key] = Overlay.of(solve_stack(stack, self.ridge))
            while len(self._solved) > _SOLVED_STACKS:
                self._solved.popitem(last=False)
        self._solved.move_to_end(key)
        return self._solved[key]

    def _attach(self, stack: list[Patch]) -> None:
        names = {site.parameter for patch in stack for site in patch.header.sites}
        self._overlays.attach({name: self._modules[name] for name in sorted(names)})

    def _check(self, patch: Patch) -> None:
        header = patch.header
        if header.base.tokenizer_hash != self.base.tokenizer_hash:
            raise _mismatch(patch, "tokenizer", header.base.tokenizer_hash, self.base.tokenizer_hash, self.base.source)
        for ref in header.sites:
            if self.quantised:
                self._remember_quantised(patch, ref)
                continue
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
        self._modules[ref.parameter] = site.module

    def _remember_quantised(self, patch: Patch, ref: SiteRef) -> None:
        try:
            module = self.model.get_submodule(ref.parameter.removesuffix(".weight"))
        except AttributeError:
            module = None
        features = tuple(getattr(module, name, None) for name in ("out_features", "in_features"))
        if module is None or features != (ref.d_out, ref.d_in):
            raise SiteError(
                f"The model has no parameter {ref.parameter} of the shape that patch {patch.short_id} needs.",
                expected=f"a module of {ref.d_out} x {ref.d_in}",
                found="none of that name" if module is None else f"{type(module).__name__}, {features}",
                next_step="Load a quantised copy of the base that the patch names.",
                patch_id=patch.id,
            )
        self._modules[ref.parameter] = module


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
