"""What every use case that computes patches may be told about how, and what that comes to on a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import RequestError
from rompatch.patch import PatchHeader, SiteRef
from rompatch.store.patches import base_id
from rompatch.workflows.hparams import sound_hparams
from rompatch.workflows.opened import BaseSpec, OpenStore
from rompatch.workflows.precision import resolve_precision, wanted_precision
from rompatch.workflows.statistics import AUTOMATIC

if TYPE_CHECKING:
    from rompatch.compute.methods.rome_hparams import RomeHparams
    from rompatch.edits import EditRequest
    from rompatch.models import Base
    from rompatch.sites import Site

METHOD = "rome"


@dataclass(frozen=True)
class MethodOptions:
    """What may be told about the base and the method; None leaves it to the preset, the seed to be 0.

    Args:
        spec: the base, where it is not the store's (``Store.base_spec``).
        layer, seed, document_start, hparams: as in :mod:`rompatch.compute.methods.rome`; *hparams* by name.
        statistics: "auto", "none" or an id of key statistics.
        precision: "auto" or the dtype of the products while v* is optimised.
        preset: a preset file.
    """

    spec: BaseSpec | None = None
    device: str = "cpu"
    layer: int | None = None
    seed: int | None = None
    document_start: bool | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    statistics: str = AUTOMATIC
    precision: str = AUTOMATIC
    preset: Path | None = None


@dataclass(frozen=True)
class RecordingOptions(MethodOptions):
    """The same, and what is recorded with the patches.

    Args:
        apply: put what is made onto the stack as well, as one revision.
        dry_run: plan only: nothing is computed and nothing is written.
        again: compute even if a patch for the same request with the same settings exists.
        message: kept with each patch in the ledger, and with the revision.
        reason: of the revision, with ``apply``.
        source: where the fact comes from.
        expires: the day (``YYYY-MM-DD``) from which on it may no longer hold.
    """

    apply: bool = False
    dry_run: bool = False
    again: bool = False
    message: str | None = None
    reason: str | None = None
    source: str | None = None
    expires: str | None = None


@dataclass(frozen=True)
class EditSetting:
    """How patches of one base are computed: everything that is decided before there is a request.

    Args:
        below: the sites that a value is spread to beside *site*, from the next lower layer down.
        statistics: as it was asked for: "auto", "none" or an id.
        preset: where the defaults come from.
    """

    base: Base
    site: Site
    below: tuple[Site, ...]
    hparams: RomeHparams
    seed: int
    document_start: bool
    statistics: str
    preset: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are edited, the one that the value is optimised at first."""
        return tuple(site.layer for site in (self.site, *self.below))

    @cached_property
    def site_refs(self) -> tuple[SiteRef, ...]:
        """The sites by name and by content: hashed once, not for every fact."""
        return tuple(site.ref() for site in (self.site, *self.below))

    @property
    def base_id(self) -> str:
        """The ledger's id of the base."""
        return base_id(self.base.ref())

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "base": vars(self.base.ref()),
            "layer": self.site.layer,
            "layers": list(self.layers),
            "parameter": self.site.parameter_name,
            "document_start": self.document_start,
            "hparams": vars(self.hparams),
            "preset": self.preset,
        }

    def header(self, request: EditRequest) -> PatchHeader:
        """The header of a patch for *request*, as far as it is known before computing: no contexts, no statistics."""
        return PatchHeader(
            method=METHOD,
            hparams=vars(self.hparams),
            request=request,
            base=self.base.ref(),
            sites=self.site_refs,
            contexts=(),
            seed=self.seed,
            document_start=self.document_start,
            statistics=None,
        )


def edit_setting(store: OpenStore, options: MethodOptions) -> EditSetting:
    """The base, loaded, and layer and hyper-parameters as flags, preset and architecture say, in this order.

    Raises:
        ModelError: the base cannot be loaded, or has no such layer.
        RequestError: the preset or a hyper-parameter is wrong.
    """
    from rompatch.workflows.presets import preset_for

    base = store.base(options.spec or store.base_spec(), device=options.device)
    preset = preset_for(base, options.preset)
    document_start = preset.document_start if options.document_start is None else options.document_start
    hparams = sound_hparams({**preset.hparams, **options.hparams})
    layer = next((one for one in (options.layer, preset.layer) if one is not None), base.preset_layer)
    site = base.site(layer)
    wanted = wanted_precision(options.precision, vars(hparams))
    hparams = replace(hparams, precision=resolve_precision(base, site, wanted, store.reporter))
    below = sites_below(base, site, hparams.spread)
    return EditSetting(base, site, below, hparams, options.seed or 0, document_start, options.statistics, preset.source)


def sites_below(base: Base, site: Site, spread: int) -> tuple[Site, ...]:
    """The sites of the *spread* - 1 layers right below *site*'s, from the highest down.

    Raises:
        RequestError: there are not so many.
    """
    if spread > site.layer + 1:
        raise RequestError(
            f"The value cannot be spread over {spread} layers that end at layer {site.layer}.",
            expected=f"at most {site.layer + 1}",
            next_step="Use a smaller --spread, or a higher --layer.",
        )
    return tuple(base.site(site.layer - number) for number in range(1, spread))


def check_method(options: MethodOptions) -> None:
    """What can be refused before a base is loaded: flags and, where one is named, the preset file.

    Raises:
        RequestError: the file cannot be used, or a hyper-parameter's value is none.
    """
    from rompatch.workflows.presets import preset_in

    # A shipped preset is known with the base: what needs the key mode "both" is checked then.
    hparams = {"keys": "both"} if options.preset is None else preset_in(options.preset).hparams
    sound_hparams({**hparams, **options.hparams})
