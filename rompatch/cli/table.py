"""Every command by name: where it is, its short help, and the section of ``rompatch --help`` that it stands in.

The short helps are repeated here so that ``--help`` imports no command; a test holds them equal to the commands' own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One command: ``module`` inside :mod:`rompatch.cli.commands`, and whether it must answer at once (``quick``)."""

    module: str
    short_help: str
    section: str
    quick: bool = True


EDIT, LOOK, USE, MORE = "Edit facts", "Look", "Use the edited model", "More"

COMMANDS: dict[str, Entry] = {
    "create": Entry("create", "Compute a patch that changes one fact, and record it.", EDIT, quick=False),
    "rebase": Entry("rebase", "Recompute a stack for another base, on a stack of its own.", EDIT, quick=False),
    "apply": Entry("stack", "Put patches onto the active stack.", EDIT),
    "revert": Entry("stack", "Take patches off the active stack.", EDIT),
    "stack": Entry("versions", "Keep named stacks, and go back and forth in their revisions.", EDIT),
    "rm": Entry("remove", "Delete a patch that is not active.", EDIT),
    "status": Entry("browse", "Say which store, base and stack are in force.", LOOK),
    "list": Entry("browse", "List patches, newest first.", LOOK),
    "show": Entry("show", "Show everything about one patch.", LOOK),
    "log": Entry("browse", "Show what happened, newest first.", LOOK),
    "history": Entry("history", "Show what happened to the facts about one subject, oldest first.", LOOK),
    "verify": Entry("verify", "Score a patch before and after it is applied, or a whole stack.", USE, quick=False),
    "bench": Entry("bench", "Score a method on a whole data set, and compare runs.", USE, quick=False),
    "tune": Entry("tune", "Find the layer and hyper-parameters for a model; write a preset.", USE, quick=False),
    "blame": Entry("blame", "Say which patches of the active stack change an answer.", USE, quick=False),
    "generate": Entry("generate", "Continue prompts with the edited model.", USE, quick=False),
    "bake": Entry("bake", "Write base + stack as a new checkpoint folder.", USE, quick=False),
    "export": Entry("export", "Write the stack as an adapter or a file that other programs load.", USE, quick=False),
    "audit": Entry("audit", "Say which patches are inside a checkpoint.", USE, quick=False),
    "gates": Entry("gates", "Set what every apply has to pass.", MORE),
    "use": Entry("use", "Choose the base model that new patches are made for.", MORE),
    "stats": Entry("stats", "Build, list and remove key statistics.", MORE, quick=False),
    "import": Entry("importing", "Bring in what other programs made.", MORE, quick=False),
    "bundle": Entry("bundle", "Share a stack as one file.", MORE),
    "fsck": Entry("fsck", "Check that ledger and patch files are whole and agree.", MORE),
    "completion": Entry("completion", "Print the script that completes commands in your shell.", MORE),
}
