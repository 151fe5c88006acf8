"""``stack``: named stacks and their revisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.commands.browse import fact
from rompatch.cli.commands.stack import report
from rompatch.cli.options import (
    WORDS,
    command,
    global_options,
    json_option,
    message_option,
    option,
    reason_option,
    write_examples,
    write_options,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.store.records import PatchRecord, RevisionRecord
    from rompatch.workflows.merging import MergePlan
    from rompatch.workflows.versions import RevisionPage, StackInfo

SHOWN = 3
"""Patches that a line of `stack log` names."""


class StackGroup(click.Group):
    """``stack`` and its subcommands."""

    examples = ("rompatch stack log", "rompatch stack diff r3 HEAD", "rompatch stack checkout r3")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the global options."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)
        write_examples(self.examples, formatter)


@click.group("stack", cls=StackGroup, params=global_options())
def stack_command() -> None:
    """Keep named stacks, and go back and forth in their revisions.

    Every change of a stack is a numbered revision, and no revision is ever rewritten. A revision is named r3, 3, HEAD,
    HEAD~2 or by its tag; NAME@r3 is one of another stack.
    """


@command("new", examples=("rompatch stack new trial", "rompatch stack new trial --from main@r3 --use"))
@click.argument("name", type=WORDS)
@option("--from", "start", type=WORDS, metavar="REVISION", help="Begin with the patches of this revision.")
@option("--use", is_flag=True, help="Make it the active stack.")
@message_option
@json_option
def new_command(settings: Settings, name: str, as_json: bool, **options: Any) -> None:
    """Make a stack, empty or with the patches of a revision.

    It is on the base of that revision, else of the active stack, else on the only base in the store.
    """
    with settings.open_store() as store:
        info = store.new_stack(name, **options)
    if as_json:
        render.emit_json(info.to_json())
        return
    click.echo(f"stack {info.stack.name!r} on {info.base} with {render.patches(info.n_patches)}")
    if not info.active:
        settings.reporter().note(f"not active: `rompatch stack use {info.stack.name}`")


@command("list", examples=("rompatch stack list",))
@json_option
def list_command(settings: Settings, as_json: bool) -> None:
    """List the stacks; the active one is marked with an asterisk."""
    with settings.open_store() as store:
        infos = store.stacks()
    if as_json:
        render.emit_json({"stacks": [info.to_json() for info in infos]})
        return
    if not infos:
        settings.reporter().note("no stacks: the first `rompatch apply` makes one")
        return
    rows = [
        (
            "*" if info.active else "",
            info.stack.name,
            f"r{info.stack.revision}",
            str(info.n_patches),
            info.base,
            _tags(info),
        )
        for info in infos
    ]
    click.echo(render.table(("", "stack", "revision", "patches", "base", "tags"), rows, right="3", flexible=4))


@command("show", examples=("rompatch stack show", "rompatch stack show main@r3"))
@click.argument("revision", metavar="[STACK|REVISION]", required=False, type=WORDS)
@json_option
def show_command(settings: Settings, revision: str | None, as_json: bool) -> None:
    """Show a stack, or one revision of it: who changed what, when and why, and the patches in it.

    Without an argument the active stack as it is now.
    """
    with settings.open_store() as store:
        found, members = store.revision(revision)
        labels = store.labels((*found.added, *found.removed))
    if as_json:
        render.emit_json(found.to_json())
        return
    click.echo(render.fields(_about(found)))
    for word, ids in (("added", found.added), ("taken off", found.removed)):
        for patch_id in ids:
            click.echo(f"  {word} {render.plain(labels[patch_id])}")
    _facts("patches", members)


@command("use", examples=("rompatch stack use trial",))
@click.argument("name", type=WORDS)
@json_option
def use_command(settings: Settings, name: str, as_json: bool) -> None:
    """Make a stack the active one: what apply, revert, verify, generate and bake work on."""
    with settings.open_store() as store:
        info = store.use_stack(name)
    if as_json:
        render.emit_json(info.to_json())
        return
    click.echo(f"stack {name!r} is active: r{info.stack.revision} with {render.patches(info.n_patches)}")


@command("rm", examples=("rompatch stack rm trial", "rompatch stack rm trial --force --reason 'never worked'"))
@click.argument("name", type=WORDS)
@option("--force", is_flag=True, help="Also if it is the active stack or has patches.")
@message_option
@reason_option
@json_option
def rm_command(settings: Settings, name: str, as_json: bool, **options: Any) -> None:
    """Remove a stack.

    Its revisions stay in the log and its patches in the store. A new stack may be given its name.
    """
    with settings.open_store() as store:
        revision = store.remove_stack(name, **options)
    if as_json:
        render.emit_json(revision.to_json())
        return
    click.echo(f"removed stack {name!r} with {render.patches(len(revision.removed))}")


@command("log", examples=("rompatch stack log", "rompatch stack log trial --limit 50 --offset 50"))
@click.argument("name", metavar="[STACK]", required=False, type=WORDS)
@option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Revisions on a page.")
@option("--offset", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Revisions to skip.")
@json_option
def log_command(settings: Settings, name: str | None, limit: int, offset: int, as_json: bool) -> None:
    """Show a stack's revisions, newest first: when, what, by whom and why."""
    with settings.open_store() as store:
        page = store.stack_log(name, limit=limit, offset=offset)
    if as_json:
        render.emit_json(page.to_json())
        return
    rows = [
        (
            " ".join((f"r{one.number}", *(f"({tag})" for tag in page.tags_at(one.number)))),
            render.moment(one.created_at),
            one.action,
            _changed(page, one),
            str(len(one.members)),
            one.author or "",
            " / ".join(filter(None, (render.overridden(one.overridden), one.message, one.reason))),
        )
        for one in page.revisions
    ]
    headers = ("revision", "when (UTC)", "what", "changed", "patches", "who", "why")
    click.echo(render.table(headers, rows, right="4", flexible=3))
    if page.more:
        settings.reporter().note(
            f"older revisions: `rompatch stack log {page.stack.name} --limit {limit} --offset {offset + limit}`"
        )


@command(
    "diff", examples=("rompatch stack diff r3", "rompatch stack diff r3 r7", "rompatch stack diff main@v1 trial@HEAD")
)
@click.argument("before", type=WORDS)
@click.argument("after", metavar="[AFTER]", default="HEAD", type=WORDS)
@json_option
def diff_command(settings: Settings, before: str, after: str, as_json: bool) -> None:
    """Show what changes from one revision to another, of one stack or of two.

    AFTER is the active stack's HEAD where it is not given.
    """
    with settings.open_store() as store:
        found = store.diff(before, after)
    if as_json:
        render.emit_json(found.to_json())
        return
    for sign, records in (("-", found.removed), ("+", found.added)):
        for record in records:
            click.echo(f"{sign} {render.plain(record.short_id)}  {render.plain(fact(record))}")
    ends = " to ".join(f"{stack.name}@r{number}" for stack, number in (found.before, found.after))
    settings.reporter().note(
        f"{ends}: {len(found.added)} added, {len(found.removed)} taken off, {found.n_common} in common"
    )


@command(
    "checkout", examples=("rompatch stack checkout r3", "rompatch stack checkout v1.0 --reason 'back to the release'")
)
@click.argument("revision", type=WORDS)
@message_option
@reason_option
@json_option
def checkout_command(settings: Settings, revision: str, as_json: bool, **options: Any) -> None:
    """Go back to the patches of a revision, as a new revision of the active stack.

    Nothing is rewritten: `rompatch stack checkout HEAD~1` takes it back.
    """
    with settings.open_store() as store:
        report(store, store.checkout(revision, **options), as_json)


@command("tag", examples=("rompatch stack tag v1.0 -m 'first release'", "rompatch stack tag before-review r3"))
@click.argument("name", type=WORDS)
@click.argument("revision", metavar="[REVISION]", default="HEAD", type=WORDS)
@message_option
@json_option
def tag_command(settings: Settings, name: str, revision: str, message: str | None, as_json: bool) -> None:
    """Give a revision a name, for good."""
    with settings.open_store() as store:
        tag = store.tag(name, revision, message=message)
    if as_json:
        render.emit_json(vars(tag))
        return
    click.echo(f"{tag.stack}@r{tag.revision} is tagged {tag.name!r}")


@command("merge", examples=("rompatch stack merge trial", "rompatch stack merge trial@r3 main --theirs"))
@click.argument("source", type=WORDS)
@click.argument("into", metavar="[STACK]", required=False, type=WORDS)
@option("--ours", "prefer", flag_value="ours", help="Where both change one fact, keep the patch of STACK.")
@option(
    "--theirs", "prefer", flag_value="theirs", help="Where both change one fact, the patch of SOURCE supersedes it."
)
@option("--dry-run", is_flag=True, help="Report what would be added and what stands in the way; change nothing.")
@message_option
@reason_option
@json_option
def merge_command(
    settings: Settings, source: str, into: str | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Put the patches of SOURCE onto STACK beside its own, as one revision.

    SOURCE is a stack or NAME@REVISION, STACK the active one where none is named. Contradictions, damaged and missing
    files, and another base are refused, all of them listed. With --theirs what is replaced is recorded as by
    `apply --supersede`, and `rompatch history` shows the chain.
    """
    with settings.open_store() as store:
        if not dry_run:
            report(store, store.merge(source, into, **options), as_json)
            return
        plan = store.plan_merge(source, into)
    if as_json:
        render.emit_json(plan.to_json())
        return
    _facts("to be added", plan.added)
    for one, other in plan.conflicts:
        click.echo(f"contradicts: {render.plain(one.label)} and {render.plain(other.label)}")
    for _, reason in plan.problems:
        click.echo(f"problem: {render.plain(reason)}")
    common = f"{render.patches(plan.n_common)} in common; nothing was changed (--dry-run)"
    settings.reporter().note(common + _refusal(plan, options["prefer"]))


def _refusal(plan: MergePlan, prefer: str | None) -> str:
    """What would keep the merge from happening, for the end of a note; nothing where it would happen."""
    if plan.problems:
        return "; the merge would be refused for its problems"
    if not plan.conflicts:
        return ""
    if prefer is None:
        return "; the merge would be refused: --ours or --theirs says which of two that contradict each other stays"
    return f"; of two that contradict each other the merge would keep {prefer}"


def _tags(info: StackInfo) -> str:
    return ", ".join(f"{tag.name}=r{tag.revision}" for tag in info.tags[:SHOWN]) + (
        ", ..." if len(info.tags) > SHOWN else ""
    )


def _about(revision: RevisionRecord) -> list[tuple[str, str | None]]:
    who = f" by {revision.author}" if revision.author else ""
    return [
        ("stack", revision.stack),
        ("revision", f"r{revision.number} ({revision.action})"),
        ("made", f"{render.moment(revision.created_at)} UTC{who}"),
        ("message", revision.message),
        ("reason", revision.reason),
    ]


def _facts(heading: str, records: tuple[PatchRecord, ...]) -> None:
    click.echo(click.style(f"{heading}: {len(records)}", bold=True))
    for record in records:
        click.echo(f"  {render.plain(record.short_id)}  {render.plain(fact(record))}")


def _changed(page: RevisionPage, revision: RevisionRecord) -> str:
    signed = [(sign, one) for sign, ids in (("-", revision.removed), ("+", revision.added)) for one in ids[:SHOWN]]
    names = [f"{sign}{page.labels[one]}" for sign, one in signed[:SHOWN]]
    more = len(revision.added) + len(revision.removed) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


for _one in (
    new_command,
    list_command,
    show_command,
    use_command,
    rm_command,
    log_command,
    diff_command,
    checkout_command,
    tag_command,
    merge_command,
):
    stack_command.add_command(_one)
