"""``apply --plan`` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rompatch.cli import render

if TYPE_CHECKING:
    from rompatch.workflows.forecasting import StackPlan
    from rompatch.workflows.site_forecasts import SitePlan

_SHOWN = 10


def plan_text(found: StackPlan) -> str:
    """What the stack would become; the worst of it first."""
    name, count = found.stack.name, render.patches(len(found.members))
    head = f"stack {name!r} (revision {found.stack.revision}) would have {count}, {len(found.adding)} of them new"
    if found.removing:
        head += "; superseded: " + ", ".join(render.plain(record.label) for record in found.removing)
    parts = [head, *(_site(site, found.threshold) for site in found.sites)]
    neighbours = found.neighbours()
    if neighbours:
        labels = [f"  {render.plain(record.label)}" for record in neighbours[:_SHOWN]]
        more = f"\n  and {len(neighbours) - _SHOWN} more" if len(neighbours) > _SHOWN else ""
        parts.append("active patches that the new ones disturb, the most disturbed first:\n" + "\n".join(labels) + more)
    if found.gates:
        missed = [f"  {render.plain(reason)}" for reason in found.missed_gates]
        parts.append("\n".join(["gates that would be missed:", *missed]) if missed else "every gate would be met")
    return "\n\n".join(parts)


def _site(site: SitePlan, threshold: float) -> str:
    found = site.forecast
    norm = f"{found.delta_norm:.4g}"
    if found.relative_norm is not None:
        norm += f", {found.relative_norm:.4f} ||W||"
    worst = max(range(len(site.patches)), key=lambda index: float(found.residuals[index]))
    residual = f"{float(found.residuals[worst]):.4f} at most ({render.plain(site.patches[worst].label)})"
    about = [
        ("patches", str(len(site.patches))),
        ("||Delta||", norm),
        ("condition", f"{found.condition:.3g}"),
        ("residual", residual),
        ("interference", f"{found.worst:.3f} at most"),
        ("shared keys", render.counted(len(found.shared), "pair") if found.shared else None),
    ]
    lines = [click.style(render.plain(site.parameter), bold=True), render.fields(about)]
    pairs = found.pairs(threshold)
    if pairs:
        head = f"{render.counted(len(pairs), 'pair')} above {threshold:g}"
        lines.append(head + (f"; the worst {_SHOWN}:" if len(pairs) > _SHOWN else ":"))
        rows = [
            (
                site.patches[pair.source].label,
                site.patches[pair.target].label,
                f"{pair.ratio:+.3f}",
                f"{pair.harm:.3f}",
            )
            for pair in pairs[:_SHOWN]
        ]
        lines.append(render.table(("patch", "disturbs", "ratio", "harm"), rows, right="23"))
    return "\n".join(lines)
