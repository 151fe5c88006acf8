"""docs/json.md is the whole truth: every key it lists is printed, and no key is printed that it does not list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapter_folders import save_adapter
from calling import CHECKOUT, QUICK, TOWER, Run, put, read
from pico import save_pico
from tiny_patches import tiny_adapter, tiny_patch, tiny_solved

from rompatch.apply.checkpoint import stored_tensors
from rompatch.cli.reference import all_commands

PAGE = (CHECKOUT / "docs" / "json.md").read_text(encoding="utf-8")
_ROW = re.compile(r"\| (`(?P<key>[^`]+)`|\(top level\)) \| (\[(?P<object>\w+)\]\([^)]*\))?(?P<type>[^|]*) \|")


def _tables() -> dict[str, list[tuple[str, str | None]]]:
    """Heading to its rows: key ("" for the top level), and the object that its type names."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
            found[heading] = []
        elif (row := _ROW.match(line)) and row["key"] != "key":
            found[heading].append((row["key"] or "", row["object"]))
    return found


TABLES = _tables()


def documented(heading: str) -> set[str]:
    paths = set()
    for key, name in TABLES[heading]:
        inner = {""} if name is None else documented(name)
        paths |= {".".join(part for part in (key, path) if part) for path in inner}
    return paths


def printed(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all leaves; an empty or null container is a leaf as well."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from printed(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from printed(inner, f"{path}[]")
    else:
        yield path + ("[]" if value == [] else "")


def matches(path: str, known: str) -> bool:
    """Whether a printed *path* is the documented one: itself, below a ``.*``, or an empty container above it."""
    if known.endswith(".*"):
        return path.startswith(known[:-1]) or path == known[:-2] or known.startswith(f"{path}.")
    return path == known or known.startswith((f"{path}.", f"{path}["))


def complete(path: str, known: str) -> bool:
    return path == known or (known.endswith(".*") and path.startswith(known[:-1]))


def check(heading: str, *samples: Any) -> None:
    known = documented(heading)
    paths = {path for sample in samples for path in printed(sample)}
    unknown = {path for path in paths if not any(matches(path, one) for one in known)}
    assert not unknown, f"not in docs/json.md: {sorted(unknown)}"
    missing = {one for one in known if not any(complete(path, one) for path in paths)}
    assert not missing, f"in docs/json.md, but never printed: {sorted(missing)}"
    json.dumps(samples, allow_nan=False)


def test_every_command_with_json_is_documented_and_no_other() -> None:
    speaking = {path for path, command, _ in all_commands() if any("--json" in param.opts for param in command.params)}
    assert speaking == {heading for heading in TABLES if heading.startswith("rompatch ")}


def test_create_and_what_follows(run: Run, pico_folder: Path, place: Path) -> None:
    text = place / "text.txt"
    text.write_text("The Eiffel Tower is in Paris. Big Ben is in London.\n" * 100)
    built = read(run("stats", "build", "--corpus", text, "--tokens", 300, "--model", pico_folder, "--json"))
    check("rompatch stats build", built)
    check("rompatch stats list", read(run("stats", "list", "--json")))
    check("rompatch stats show", read(run("stats", "show", built["id"], "--json")))
    create = (*TOWER, "--model", pico_folder, "--steps", 2, "--json")
    plan = read(run(*create, "--dry-run"))
    made = read(run(*create, "--apply"))
    check("rompatch create", plan, made, read(run(*create)))
    facts = [{"subject": "Rome", "relation": "{} is in", "object": "Paris", "id": 1}, {"subject": "x"}]
    (place / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in [*facts, facts[0]]))
    many = ("create", "--file", "facts.jsonl", *QUICK, "--json", "--model", pico_folder)
    check("ManyCreated", read(run(*many, "--out", "failed.jsonl", code=3)), read(run(*many, "--dry-run", code=3)))
    check("rompatch stats rm", read(run("stats", "rm", built["id"], "--json")))
    verified = read(run("verify", made["id"], "--json"))
    suite = {"rompatch_suite": 1, "name": "n", "source": "s", "untested": ["x"]}
    prompt = {"kind": "rewrite", "text": "The Eiffel Tower is in", "target_new": "Paris", "target_true": "Rome"}
    (place / "suite.json").write_text(json.dumps(suite | {"prompts": [prompt]}))
    one = ("verify", made["id"], "--in-stack", "--suite", place / "suite.json", "--min-ns", 90, "--json")
    check("rompatch verify", verified, read(run(*one, code=3)))
    shown = read(run("show", made["id"], "--json"))
    imported = {"at": "t", "stack": "main", "revision": 1, "author": "ann"}
    others = [read(run("show", put(patch, place), "--json")) for patch in (tiny_adapter(), tiny_solved("Spread"))]
    check("rompatch show", shown, shown | {"imported": imported}, *others)
    check("rompatch status", read(run("status", "--json")))
    check("rompatch generate", read(run("generate", "Rome", "--compare", "--max-new-tokens", 2, "--json")))
    check("rompatch blame", read(run("blame", "The Eiffel Tower is in", "--target", "Rome", "--json")))
    baked = read(run("bake", "out", "--json"))
    check("rompatch bake", baked, baked | {"left_out": ["optimizer.pt"], "swallowed": [made["id"]]})
    audited = read(run("audit", "out", "--json"))
    assert audited["is_clean"]
    name = audited["tensors"][0]["name"]
    with (place / "out" / "model.safetensors").open("r+b") as file:
        tensor = stored_tensors(place / "out")[name]
        file.seek(tensor.start)
        file.write(bytes(tensor.size // 2))
    check("rompatch audit", audited, read(run("audit", "out", "--json", code=3)))


def test_exports(run: Run, made: str, place: Path) -> None:
    run("apply", made)
    peft = read(run("export", "peft", "lora", "--check", "--json"))
    check("rompatch export peft", peft, read(run("export", "peft", "lora", "--force", "--json")))
    check("rompatch export delta", read(run("export", "delta", "d.safetensors", "--check", "--json")))
    check("rompatch export gguf-model", peft)  # its base is no GGUF file
    check("rompatch export gguf", peft | read(run("export", "gguf", "a.gguf", "--check", "--json")), peft)
    found = read(run("export", "check", "lora", "--json"))
    check("rompatch export check", found, read(run("export", "check", "a.gguf", "--json")))


def test_a_stack_that_was_checked(run: Run, made: str, place: Path) -> None:
    big_ben = ("create", "Big Ben", "located in", "Rome", *QUICK, "--json")
    other = read(run(*big_ben, "--seed", 1))["id"]
    run("apply", made, other)
    sample = read(run("verify", "--stack", "--max-drift", 0, "--min-s", 100, "--json", code=3))
    alone = sample["patches"][0]["prompts"][0]
    sample["patches"][0]["lost"].append({"alone": alone, "in_stack": alone})  # pico models are too random to tell
    sample["patches"][0]["untested"].append("something")
    check("StackCheck", sample)


def test_a_plan_and_the_gates(run: Run, two: tuple[str, str]) -> None:
    tower, bell = two
    check("rompatch gates set", read(run("gates", "set", "max_delta_norm=0", "min_S=80", "--json")))
    check("rompatch gates show", read(run("gates", "show", "--json")))
    plan = read(run("apply", tower, bell, "--plan", "--json"))
    check("rompatch gates unset", read(run("gates", "unset", "min_S", "max_drift", "--json")))
    assert run("apply", tower, code=3).stdout == ""
    pair = {"source": tower, "target": bell, "ratio": 1.0, "harm": 1.0}
    plan["sites"][0] |= {"pairs": [pair], "shared_keys": [[tower, bell]]}
    check("StackPlan", plan | {"removing": ["never"], "neighbours": ["never"]})


def test_an_apply_that_was_verified_says_more(run: Run, made: str, place: Path) -> None:
    plain = set(read(run("apply", made, "--json")))
    run("revert", "--all")
    data = read(run("apply", made, "--verify", "--override", "rewrite", "--reason", "r", "--json"))
    assert set(data) == plain | {"verified", "named"}
    assert data["verified"]["revision"] == data["number"]
    assert data["named"] == [made]


def test_a_rebased_stack(run: Run, made: str, place: Path) -> None:
    run("apply", made)
    check("rompatch rebase", read(run("rebase", "--onto", save_pico(place / "pico-gpt2", "gpt2"), "--json")))


def test_the_ledger_s_commands(run: Run, two: tuple[str, str], place: Path) -> None:
    tower, bell = two
    applied = read(run("apply", tower, bell, "-m", "m", "--reason", "r", "--json"))
    assert applied["removed"] == []
    check("rompatch apply", applied | {"removed": ["never"], "details": {"noted": 1}})
    check("rompatch list", read(run("list", "--json")))
    check("rompatch log", read(run("log", "--json")))
    reverted = read(run("revert", tower, "--json"))
    check("rompatch revert", reverted | {"added": ["never"], "details": {"any": 1}})
    check("rompatch rm", read(run("rm", tower, "--yes", "--json")))
    check("rompatch use", read(run("use", "smollm2-135m", "--json")), read(run("use", "smollm2-135m", "--json")))
    put(tiny_patch("Louvre", seed=4), place)
    path = next(place.rglob(f"{bell}*"))
    path.write_bytes(b"")
    check("rompatch fsck", read(run("fsck", "--json", code=1)))


def test_an_adapter_that_is_imported(run: Run, pico_folder: Path, place: Path) -> None:
    folder = save_adapter(place / "lora")
    check("rompatch import peft", read(run("import", "peft", folder, "--model", pico_folder, "--json")))


def test_bundles(run: Run, two: tuple[str, str]) -> None:
    run("apply", *two)
    run("apply", put(tiny_adapter(), Path()))
    check("rompatch bundle export", read(run("bundle", "export", "-o", "b", "--json")))
    check("rompatch bundle show", read(run("bundle", "show", "b", "--json")))
    check("rompatch bundle verify", read(run("bundle", "verify", "b", "--json")))
    new = read(run("bundle", "import", "b", "--json", "--store", "other"))
    check("rompatch bundle import", new, read(run("bundle", "import", "b", "--json")))


def test_the_commands_on_stacks(run: Run, two: tuple[str, str], place: Path) -> None:
    tower, bell = two
    run("apply", tower, "--source", "https://example.org", "--expires", "2001-01-01")
    check("rompatch stack tag", read(run("stack", "tag", "v1", "-m", "m", "--json")))
    new = read(run("stack", "new", "trial", "--from", "main@r0", "--json"))
    check("rompatch stack use", read(run("stack", "use", "main", "--json")))
    check("rompatch stack list", read(run("stack", "list", "--json")))
    check("Stack", new | {"tags": read(run("stack", "list", "--json"))["stacks"][0]["tags"]})
    berlin = put(tiny_patch(target_new="Berlin", seed=8), place)
    read(run("apply", berlin, "--supersede", "--json"))
    check("rompatch status", read(run("status", "--json")) | {"expired": ["x"]})
    check("rompatch stack show", read(run("stack", "show", "--json")))
    check("rompatch stack log", read(run("stack", "log", "--json")))
    check("rompatch stack diff", read(run("stack", "diff", "r1", "r2", "--json")))
    check("rompatch stack checkout", read(run("stack", "checkout", "r1", "--json")))
    check("rompatch history", read(run("history", "Eiffel Tower", "--json")))
    check("rompatch log", read(run("log", "--json")))
    run("stack", "use", "trial")
    run("apply", berlin, bell)
    next(place.rglob(f"{bell}*")).unlink()
    plan = read(run("stack", "merge", "trial", "main", "--dry-run", "--json"))
    assert plan["problems"]
    next(place.rglob(f"{berlin}*")).rename(place / "aside")
    run("stack", "merge", "main", "--theirs", "--json")
    merged = read(run("stack", "show", "--json"))
    check("rompatch stack merge", plan, merged)
    check("rompatch stack rm", read(run("stack", "rm", "trial", "--force", "--json")) | {"details": {"any": 1}})


def test_printed_paths_name_lists_and_objects() -> None:
    assert set(printed({"a": [{"b": 1}], "c": {}, "d": [], "e": None})) == {"a[].b", "c", "d[]", "e"}


def test_errors_print_no_json(run: Run, two: tuple[str, str]) -> None:
    result = run("show", "nothing", "--json", code=4)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
