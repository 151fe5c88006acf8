"""create --like: the request and the method's settings of a patch, computed again, on the same base or another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from rompatch.errors import ConflictError
from rompatch.patch import PatchHeader
from rompatch.store.patches import base_id
from rompatch.store.records import PatchRecord
from rompatch.workflows.creating import Created, CreateOptions, carry_out
from rompatch.workflows.existing import UNSAID
from rompatch.workflows.method_options import METHOD, EditSetting, MethodOptions, edit_setting
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.planning import plan_request
from rompatch.workflows.provenance import checked_expiry
from rompatch.workflows.statistics import AUTOMATIC, NO_STATISTICS

Options = TypeVar("Options", bound=MethodOptions)


def create_like(store: OpenStore, name: str, options: CreateOptions | None = None) -> Created:
    """Compute the request of the patch that *name* means again, on the store's base or the one that *options* name,
    save it, record it. Writes. A note says what differs.

    Hyper-parameters, seed and document start are the patch's where *options* do not say otherwise; the layer is too on
    the same base, and the new base's own on another. Source and day of expiry go along.

    Raises:
        PatchNotFoundError, AmbiguousIdError: the name means no patch, or several.
        RequestError: it changes no single fact, or cannot be carried out on this base.
        ModelError, ComputeError, StatisticsError, StoreError, OutputError, ConflictError, BaseMismatchError: as
            :func:`rompatch.workflows.creating.create`.
    """
    record = store.resolve(name)
    request = record.request
    options = options or CreateOptions()
    checked_expiry(options.expires)
    setting = setting_like(store, record, options)
    for text in differences(record.header, setting):
        store.reporter.note(text)
    told = replace(
        options,
        statistics=setting.statistics,
        true=request.target_true,
        message=options.message or record.message,
        source=options.source or record.source,
        expires=options.expires or record.expires_at,
    )
    return carry_out(store, setting, plan_request(store, setting, request), told)


def setting_like(store: OpenStore, record: PatchRecord, options: MethodOptions) -> EditSetting:
    """How *record* is computed again on the base that *options* (or the store) name.

    Raises:
        ConflictError: another method made it.
        ModelError: the base cannot be loaded, or has no such layer.
    """
    if record.header.method != METHOD:
        raise ConflictError(
            f"Patch {record.label} cannot be computed again.", expected=METHOD, found=record.header.method
        )
    base = store.base(options.spec or store.base_spec(), device=options.device)
    return edit_setting(store, options_like(record.header, options, same_base=_is_on(record, base.ref())))


def options_like(header: PatchHeader, options: Options, *, same_base: bool) -> Options:
    """*options* with the patch's own settings wherever they say nothing; another base has its own layer and precision,
    and a preset file its own hyper-parameters."""
    hparams: dict[str, Any] = {} if options.preset is not None else {**UNSAID, **header.hparams}
    precision = hparams.pop("precision", None)
    own_layer = header.sites[0].layer if same_base and options.preset is None else None
    return replace(
        options,
        layer=own_layer if options.layer is None else options.layer,
        seed=header.seed if options.seed is None else options.seed,
        document_start=header.document_start if options.document_start is None else options.document_start,
        hparams={**hparams, **options.hparams},
        statistics=NO_STATISTICS
        if header.statistics is None and options.statistics == AUTOMATIC
        else options.statistics,
        precision=precision if same_base and precision and options.precision == AUTOMATIC else options.precision,
    )


def differences(header: PatchHeader, setting: EditSetting) -> list[str]:
    """What will differ from the patch with *header*, in words."""
    found = []
    base = setting.base.ref()
    if base_id(base) != base_id(header.base):
        found.append(f"base: {header.base.source} ({header.base.dtype}) -> {base.source} ({base.dtype})")
    old, new = header.sites[0], setting.site.ref()
    if old.parameter != new.parameter:
        found.append(f"weight: {old.parameter} -> {new.parameter}")
    hparams = vars(setting.hparams)
    for name in sorted(hparams):
        before = {**UNSAID, **header.hparams}.get(name, hparams[name])
        if before != hparams[name]:
            found.append(f"{name}: {before} -> {hparams[name]}")
    if header.seed != setting.seed:
        found.append(f"seed: {header.seed} -> {setting.seed}")
    if header.document_start is not setting.document_start:
        found.append(f"document start: {header.document_start} -> {setting.document_start}")
    return found


def _is_on(record: PatchRecord, base: Any) -> bool:
    return record.base_id == base_id(base)
