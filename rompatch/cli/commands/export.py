"""``export``: the stack in the forms that other programs load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import (
    MODEL,
    PATH,
    WORDS,
    command,
    global_options,
    json_option,
    option,
    stacked,
    write_examples,
    write_options,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.export.check import ExportCheck
    from rompatch.workflows.exporting import Exported

CHECK = "Check"


class ExportGroup(click.Group):
    """``export`` and its subcommands."""

    examples = ("rompatch export peft ./rome-lora --check", "rompatch export gguf rome.gguf")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the global options."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)
        write_examples(self.examples, formatter)


@click.group("export", cls=ExportGroup, params=global_options())
def export_command() -> None:
    """Write the stack as an adapter or a file that other programs load.

    PEFT, transformers and vLLM load what `peft` writes, llama.cpp and Ollama what `gguf` writes; `delta` is for
    everything else. Each takes the active stack, or the patches named with --patch.
    """


def _dtypes(*names: str) -> Callable[[Any], Any]:
    return option(
        "--dtype", type=click.Choice(names), default=names[0], show_default=True, help="Of the numbers written."
    )


_patches = option(
    "--patch",
    "patches",
    multiple=True,
    type=WORDS,
    metavar="NAME",
    help="Only this patch instead of the active stack; may be given several times.",
)
_shared = stacked(
    click.argument("out", type=PATH),
    _patches,
    option("--force", is_flag=True, help="Replace an earlier export of that name."),
    json_option,
)
_max_rank = option(
    "--max-rank",
    type=click.IntRange(min=1),
    metavar="R",
    help="Keep at most R columns a weight; the error is printed. Default: all that carry anything.",
)
_check = option(
    "--check", is_flag=True, group=CHECK, help="Run it in its own client, and compare with the session (exit code 3)."
)
_gguf = option(
    "--gguf",
    type=PATH,
    metavar="FILE",
    group=CHECK,
    help="A GGUF file of the base, for llama.cpp. Default: the base itself, if it is one.",
)
_model = option(
    "--model",
    type=WORDS,
    metavar="SPEC",
    group=MODEL,
    help="The base: a folder, a .gguf file, an alias or a hub id. Default: the patches' own.",
)


@command(
    "peft",
    examples=(
        "rompatch export peft ./rome-lora --check",
        'rompatch export peft ./rome-lora --patch "Eiffel Tower" --base-name my-org/my-model',
    ),
)
@_shared
@_dtypes("float32", "float16", "bfloat16")
@_max_rank
@option(
    "--base-name",
    type=WORDS,
    metavar="NAME",
    help="What the adapter calls its base, e.g. a hub id. Default: as the store knows it.",
)
@_check
@_model
def peft(settings: Settings, out: Path, as_json: bool, **given: Any) -> None:
    """Write a LoRA adapter for PEFT, transformers and vLLM: the new folder OUT.

    A stack of m patches is a LoRA of rank m on the weights it touches, exactly.
    """
    exported = _exported(settings, "export_peft", out, as_json, given)
    if not as_json:
        from rompatch.export.peft_lora import vllm_rank

        rank = max(site.rank for site in exported.report.sites)
        limit = vllm_rank(rank)
        settings.reporter().note(
            f"vLLM: --max-lora-rank {limit}"
            if limit
            else f"vLLM takes ranks up to 512, this one has {rank}: --max-rank"
        )
    exported.check_gate()


@command("gguf", examples=("rompatch export gguf rome.gguf --check", "rompatch export gguf rome.gguf --dtype float16"))
@_shared
@_dtypes("float32", "float16")
@_max_rank
@_check
@_gguf
@_model
def gguf(settings: Settings, out: Path, as_json: bool, **given: Any) -> None:
    """Write a LoRA adapter for llama.cpp: the new file OUT.

    Load it beside a GGUF file of the base in any quantisation.
    """
    _exported(settings, "export_gguf", out, as_json, given).check_gate()


@command("gguf-model", examples=("rompatch export gguf-model edited.gguf --check",))
@click.argument("out", type=PATH)
@_patches
@json_option
@_dtypes("float16", "q8_0", "float32")
@_check
@_model
def gguf_model(settings: Settings, out: Path, as_json: bool, **given: Any) -> None:
    """Write the base's GGUF file with the stack in it: the new file OUT.

    For bases that are GGUF files. The edited tensors are kept in --dtype, since four bits a weight would destroy the
    edit; every other byte is the base's own.
    """
    _exported(settings, "export_gguf_model", out, as_json, given).check_gate()


@command("delta", examples=("rompatch export delta rome.safetensors",))
@_shared
@_dtypes("float32", "float16", "bfloat16")
@_max_rank
@_check
@_model
def delta(settings: Settings, out: Path, as_json: bool, **given: Any) -> None:
    """Write plain low-rank factors as one safetensors file: the new file OUT.

    Ten lines of Python apply it (docs/delta-format.md).
    """
    _exported(settings, "export_delta", out, as_json, given).check_gate()


@command(
    "check", examples=("rompatch export check ./rome-lora", "rompatch export check rome.gguf --gguf my-model.gguf")
)
@click.argument("path", type=PATH)
@json_option
@_gguf
@_model
def check(settings: Settings, path: Path, as_json: bool, gguf: Path | None, model: str | None) -> None:
    """Run an export in its own client, and compare with the session.

    PATH is what `peft`, `gguf` or `delta` wrote. The patches in it are looked up in the store. Exit code 3: the
    probabilities of next tokens after the patches' prompts differ by more than rounding explains (docs/export.md).
    """
    with settings.open_store() as store:
        checked = store.check_export(path, model=model, gguf=gguf)
    if as_json:
        render.emit_json(checked.to_json())
    else:
        click.echo(check_text(checked.checked))
    checked.check_gate()


def _exported(settings: Settings, use_case: str, out: Path, as_json: bool, given: dict[str, Any]) -> Exported:
    given["patches"] = given["patches"] or None
    with settings.open_store() as store:
        exported: Exported = getattr(store, use_case)(out, **given)
    if as_json:
        render.emit_json(exported.to_json())
    else:
        click.echo(_text(exported))
    return exported


def _text(exported: Exported) -> str:
    report = exported.report
    head = f"exported {render.patches(len(exported.patches))} to {render.plain(str(report.path))}"
    lines = [f"{head}: {report.kind}, {report.dtype}, {render.size(report.size)}"]
    lines += [f"  {render.plain(record.label)}" for record in exported.patches]
    lines += [
        f"  {render.plain(site.stored_as)}: rank {site.rank}"
        + (f" of {site.columns}" if site.rank != site.columns else "")
        + f", relative error {site.relative_error:.1e}"
        for site in report.sites
    ]
    if exported.checked is not None:
        lines.append(check_text(exported.checked))
    return "\n".join(lines)


def check_text(check: ExportCheck) -> str:
    """One line of verdict, then a table of the prompts."""
    if not check.ran or check.difference is None:
        return f"check: {check.client}: {check.reason}"
    verdict = "agrees with the session" if check.passed else "differs from the session"
    rows = [
        (prompt.prompt, prompt.target, render.probability(prompt.session), render.probability(prompt.client))
        for prompt in check.prompts
    ]
    return (
        f"check: {check.client} {verdict}: probabilities of next tokens within {check.difference:.1e} "
        f"(allowed {check.tolerance:g})\n"
        + render.table(("prompt", "object", "session", check.client), rows, right="23", flexible=0)
    )


for _subcommand in (peft, gguf, gguf_model, delta, check):
    export_command.add_command(_subcommand)
