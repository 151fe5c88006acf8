"""What a name of a revision means (``r3``, ``3``, ``HEAD~2``, a tag, ``NAME@r3``), and the ledger's verbs on tags."""

from __future__ import annotations

import re

from sqlalchemy import insert, select

from rompatch.errors import ConflictError, PatchNotFoundError, StoreError
from rompatch.store import schema
from rompatch.store.lookup import unknown
from rompatch.store.patches import now
from rompatch.store.records import StackRecord, TagRecord
from rompatch.store.stack_rows import name_of, stack_row
from rompatch.store.stacks import StackVerbs

HEAD = "HEAD"
_NUMBER = re.compile(r"[rR]?(\d{1,9})")
_TAG = re.compile(r"[^\W_][\w.+-]{0,99}")
_REVISION = re.compile(r"(?:(?P<stack>[^@]*)@)?(?P<anchor>[^@~]+)(?:~(?P<back>\d{0,9}))?")


def parse_revision(text: str) -> tuple[str | None, str, int]:
    """The stack (None: not named), the anchor (a number, a tag, HEAD) and how many revisions before it are meant.

    Raises:
        PatchNotFoundError: it cannot be a revision.
    """
    match = _REVISION.fullmatch(text.strip())
    if match is None:
        raise PatchNotFoundError(
            f"{text!r} names no revision.", expected="r3, 3, HEAD, HEAD~2, a tag, or one of these after NAME@"
        )
    back = match["back"]
    return match["stack"] or None, match["anchor"], 0 if back is None else int(back or 1)


class RevisionVerbs(StackVerbs):
    """Verbs on names of revisions and on tags; part of :class:`~rompatch.store.ledger.Ledger`."""

    def find_revision(self, name: str, stack: StackRecord | str | None = None) -> tuple[StackRecord, int]:
        """The stack and the number of the revision that *name* means. Reads only.

        Args:
            name: ``r3``, ``3``, ``HEAD``, ``HEAD~2``, a tag, ``TAG~1``; after ``NAME@`` of that stack.
            stack: the stack, where none is named; None is the active one.

        Raises:
            PatchNotFoundError: there is no such stack, tag or revision; similar tags are suggested.
        """
        named, anchor, back = parse_revision(name)
        with self.session.reading():
            chosen = named or (None if stack is None else name_of(stack))
            found = self.active_stack() if chosen is None else self.stack(chosen)
            if found is None:
                raise PatchNotFoundError("No stack is active.", next_step="`rompatch stack list` shows the stacks.")
            number = self._anchored(found, anchor) - back
        if not 0 <= number <= found.revision:
            raise PatchNotFoundError(
                f"Stack {found.name!r} has no revision {name.strip()!r}.",
                expected=f"r0 to r{found.revision}",
                next_step="`rompatch stack log` lists them.",
            )
        return found, number

    def _anchored(self, stack: StackRecord, anchor: str) -> int:
        if anchor.upper() == HEAD:
            return stack.revision
        if number := _NUMBER.fullmatch(anchor):
            return int(number[1])
        tags = {tag.name: tag.revision for tag in self.tags(stack)}
        if anchor not in tags:
            raise unknown("tag", anchor, list(tags), "`rompatch stack log` lists the revisions.", stack=stack.name)
        return tags[anchor]

    def add_tag(
        self,
        stack: StackRecord | str,
        name: str,
        revision: int,
        *,
        message: str | None = None,
        author: str | None = None,
    ) -> TagRecord:
        """Give a revision a name, for good. Writes.

        Raises:
            ConflictError: the stack has a tag of that name.
            StoreError: no tag can be called so.
            PatchNotFoundError: no such stack or revision.
        """
        if not _TAG.fullmatch(name) or _NUMBER.fullmatch(name) or name.upper() == HEAD:
            raise StoreError(
                f"No tag can be called {name!r}.",
                expected="letters, digits, '.', '_', '+', '-'; not a revision such as r3, 3 or HEAD",
            )
        table = schema.stack_tags
        with self.session.writing() as connection:
            found, number = self.find_revision(f"r{revision}", stack)
            known = {tag.name: tag.revision for tag in self.tags(found)}
            if name in known:
                raise ConflictError(
                    f"Stack {found.name!r} has a tag {name!r} already, at r{known[name]}.",
                    next_step="A tag stays where it is: choose another name.",
                )
            row = {"stack_id": stack_row(connection, found.name)["id"], "name": name, "revision": number}
            row |= {"created_at": now(), "author": author, "message": message}
            connection.execute(insert(table).values(row))
        return next(tag for tag in self.tags(found) if tag.name == name)

    def tags(self, stack: StackRecord | str) -> tuple[TagRecord, ...]:
        """The tags of a stack, those of the newest revisions first. Reads only.

        Raises:
            PatchNotFoundError: no such stack.
        """
        table = schema.stack_tags
        with self.session.reading() as connection:
            row = stack_row(connection, name_of(stack))
            query = select(table).where(table.c.stack_id == row["id"]).order_by(table.c.revision.desc(), table.c.name)
            names = ("name", "revision", "created_at", "author", "message")
            return tuple(
                TagRecord(stack=row["name"], **{name: tag[name] for name in names})
                for tag in connection.execute(query).mappings()
            )
