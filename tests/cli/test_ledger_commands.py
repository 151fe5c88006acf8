"""The commands that need no model: list, show, log, status, apply, revert, rm, use, fsck, stats list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from calling import Run, contents, put, read
from tiny_patches import tiny_patch

import rompatch

Two = tuple[str, str]


def test_apply_and_revert_say_what_changed(run: Run, two: Two) -> None:
    tower, bell = two
    applied = run("apply", "Eiffel Tower", bell).stdout
    assert f"applied {tower} (Eiffel Tower -> Rome)\n" in applied
    assert f"applied {bell} (Big Ben -> Paris)\n" in applied
    assert applied.endswith("stack 'main' is at revision 1 with 2 patches\n")
    reverted = run("revert", "big ben").stdout
    assert reverted == f"reverted {bell} (Big Ben -> Paris)\nstack 'main' is at revision 2 with 1 patch\n"
    assert "with 0 patches" in run("revert", "--all").stdout


def test_apply_is_all_or_nothing(run: Run, two: Two, place: Path) -> None:
    before = contents(place)
    result = run("apply", two[0], "nonsense", code=4)
    assert "There is no patch 'nonsense'." in result.stderr
    assert result.stdout == ""
    assert contents(place) == before
    assert read(run("status", "--json"))["active"] == []


def test_applying_twice_is_refused_with_the_reason(run: Run, two: Two) -> None:
    run("apply", two[0])
    assert "is already active" in run("apply", two[0], code=1).stderr


def test_the_same_name_twice_counts_once(run: Run, two: Two) -> None:
    assert read(run("apply", two[0], "Eiffel Tower", "--json"))["added"] == [
        one["id"] for one in read(run("list", "--active", "--json"))["patches"]
    ]


def test_revert_wants_a_name_or_all(run: Run, two: Two) -> None:
    assert "--all" in run("revert", code=2).stderr
    run("apply", two[0])
    assert "not both" in run("revert", two[0], "--all", code=2).stderr
    assert len(read(run("status", "--json"))["active"]) == 1


def test_messages_and_reasons_reach_the_log(run: Run, two: Two) -> None:
    revision = read(run("apply", two[0], "-m", "try Rome", "--reason", "T-12", "--json"))
    assert (revision["message"], revision["reason"], revision["author"]) == ("try Rome", "T-12", "tester")
    assert "try Rome" in run("log").stdout


def test_list_marks_active_patches_newest_first(run: Run, two: Two) -> None:
    tower, bell = two
    run("apply", tower)
    _head, first, second = run("list").stdout.splitlines()
    assert first.startswith("   " + bell)
    assert second.startswith("*  " + tower)


def test_list_filters(run: Run, two: Two) -> None:
    tower, bell = two
    run("apply", tower)
    assert [one["id"][:12] for one in read(run("list", "--active", "--json"))["patches"]] == [tower]
    assert [one["id"][:12] for one in read(run("list", "--subject", "BIG  ben", "--json"))["patches"]] == [bell]
    assert [one["id"][:12] for one in read(run("list", "--limit", 1, "--json"))["patches"]] == [bell]
    nothing = run("list", "--subject", "Louvre")
    assert (nothing.stdout, nothing.stderr) == ("", "no patches like that\n")


def test_show_tells_everything(run: Run, two: Two, place: Path) -> None:
    text = run("show", two[0]).stdout
    for fact in ("Eiffel Tower is located in", "transformer.h.1.mlp.c_proj.weight", "1,000 tokens", "a test", "tester"):
        assert fact in text
    data = read(run("show", two[0], "--json"))
    assert Path(data["path"]).is_file()
    assert data["header"]["request"]["target_true"] == "Paris"


def test_names_may_be_prefixes_and_subjects(run: Run, two: Two) -> None:
    ids = {read(run("show", name, "--json"))["id"] for name in (two[0], two[0][:5], "eiffel tower")}
    assert len(ids) == 1


def test_an_ambiguous_name_lists_the_candidates(run: Run, two: Two, place: Path) -> None:
    other = put(tiny_patch(target_new="Berlin", seed=3), place)
    result = run("show", "Eiffel Tower", code=4)
    assert "'Eiffel Tower' means 2 patches." in result.stderr
    assert two[0] in result.stderr
    assert other in result.stderr


def test_a_misspelt_name_is_answered_with_similar_ones(run: Run, two: Two) -> None:
    assert "next: Did you mean 'Eiffel Tower'?" in run("show", "Eifel Tower", code=4).stderr


def test_log_pages(run: Run, two: Two) -> None:
    run("apply", two[0])
    run("revert", "--all")
    whole = read(run("log", "--json"))
    assert [event["kind"] for event in whole["events"]] == ["clear", "apply", "stack", "create", "create"]
    assert whole["more"] is False
    pages = [read(run("log", "--limit", 2, "--offset", start, "--json")) for start in (0, 2, 4)]
    assert [event for page in pages for event in page["events"]] == whole["events"]
    assert [page["more"] for page in pages] == [True, True, False]
    assert "rompatch log --limit 2 --offset 2" in run("log", "--limit", 2).stderr


def test_the_log_says_what_was_put_on_and_what_was_taken_off(run: Run, two: Two, place: Path) -> None:
    tower, bell = two
    run("apply", tower, bell)
    berlin = put(tiny_patch(target_new="Berlin", seed=8), place)
    run("apply", berlin, "--supersede")
    _, superseded, _made, applied, *_ = run("log").stdout.splitlines()
    assert f"main@r2: -{tower} (Eiffel Tower), +{berlin} (Eiffel Tower)" in superseded
    assert f"+{tower}" in applied
    assert f"+{bell}" in applied
    event = read(run("log", "--json"))["events"][0]
    assert ([one[:12] for one in event["added"]], [one[:12] for one in event["removed"]]) == ([berlin], [tower])
    assert sorted(event["patch_ids"]) == sorted(event["added"] + event["removed"])


def test_overridden_gates_are_named_in_the_logs(run: Run, two: Two) -> None:
    tower, bell = two
    run("gates", "set", "min_S=80")
    run("apply", tower, bell, "--override", "min_S", "--reason", "T-12")
    run("revert", bell)
    log = run("stack", "log").stdout.splitlines()
    assert [line.endswith("overrides min_S / T-12") for line in log[1:]] == [False, True, False]
    assert [one["overridden"] for one in read(run("stack", "log", "--json"))["revisions"]] == [[], ["min_S"], []]
    assert "overrides min_S / T-12" in run("history", "Big Ben").stdout
    events = read(run("history", "Big Ben", "--json"))["events"]
    assert [(one["kind"], one["overridden"]) for one in events] == [("create", []), ("on", ["min_S"]), ("off", [])]


def test_merging_theirs_says_what_it_supersedes(run: Run, two: Two, place: Path) -> None:
    run("apply", two[0])
    run("stack", "new", "trial", "--use")
    berlin = put(tiny_patch(target_new="Berlin", seed=8), place)
    run("apply", berlin)
    run("stack", "use", "main")
    assert f"superseded {two[0]} (Eiffel Tower -> Rome)" in run("stack", "merge", "trial", "--theirs").stdout
    told = run("history", "Eiffel Tower").stdout
    assert f"replaces {two[0]}" in told
    assert f"by {berlin}" in told
    assert f"reverted {berlin}" in run("stack", "checkout", "HEAD~1").stdout


def test_a_tampered_bundle_is_not_shown(run: Run, two: Two, place: Path) -> None:
    run("apply", *two)
    run("bundle", "export", "-o", "b")
    assert "by whom was not checked" not in run("bundle", "show", "b").stdout
    data = bytearray((place / "b").read_bytes())
    data[2000] ^= 1
    (place / "b").write_bytes(data)
    shown = run("bundle", "show", "b", code=1)
    assert shown.stdout == ""
    assert "is damaged" in shown.stderr


def test_an_imported_patch_has_two_times(run: Run, two: Two) -> None:
    run("apply", *two)
    run("bundle", "export", "-o", "b")
    run("bundle", "import", "b", "--store", "other")
    here, there = (run("show", two[0], *args).stdout.splitlines() for args in ((), ("--store", "other")))
    made = [line for line in here if line.startswith("made ")]
    assert made == [line for line in there if line.startswith("made ")]
    assert not any(line.startswith("imported") for line in here)
    (imported,) = [line for line in there if line.startswith("imported")]
    assert imported.endswith("UTC by tester, onto main@r1")


def test_rm_deletes_row_and_file(run: Run, two: Two, place: Path) -> None:
    data = read(run("rm", two[0], "--yes", "--json"))
    assert data["subject"] == "Eiffel Tower"
    assert not list(place.rglob(f"{two[0]}*"))
    run("show", data["id"], code=4)
    assert read(run("log", "--json"))["events"][0]["kind"] == "remove"


def test_rm_without_a_terminal_needs_yes(run: Run, two: Two, place: Path) -> None:
    before = contents(place)
    assert "--yes" in run("rm", two[0], code=2, input="y\n").stderr
    assert contents(place) == before


def test_rm_refuses_an_active_patch(run: Run, two: Two) -> None:
    run("apply", two[0])
    assert f"rompatch revert {two[0]}" in run("rm", two[0], "--yes", code=1).stderr
    assert read(run("show", two[0], "--json"))["active"] is True


def test_status_names_store_base_stack_and_patches(run: Run, two: Two, place: Path) -> None:
    assert "none yet" in run("status").stdout
    run("apply", two[0])
    text = run("status").stdout
    assert str(place / ".rompatch") in text
    assert "main, revision 1" in text
    assert "1 of 2 patches" in text
    assert "Eiffel Tower is located in: Paris -> Rome" in text


def test_use_says_what_it_was(run: Run, pico_folder: Path, place: Path) -> None:
    first = run("use", pico_folder, "--dtype", "bfloat16")
    assert "created the store" in first.stderr
    assert first.stdout == f"new patches are made for {pico_folder} bfloat16 (none had been chosen)\n"
    second = read(run("use", "smollm2-135m", "--json"))
    assert second["before"] == {"model": str(pico_folder), "dtype": "bfloat16", "module": None}
    assert read(run("status", "--json"))["base"]["model"] == "smollm2-135m"


@pytest.mark.parametrize("model", ["./nowhere", "missing.gguf", "a/b/c", ""])
def test_use_refuses_what_can_be_no_model(run: Run, place: Path, model: str) -> None:
    assert "There is no model" in run("use", model, code=1).stderr
    assert not (place / ".rompatch").exists()


def test_use_refuses_a_folder_without_a_model(run: Run, two: Two, place: Path) -> None:
    assert "holds no model" in run("use", place, code=1).stderr
    assert read(run("status", "--json"))["base"]["chosen"] is False


def test_fsck_is_content_with_a_whole_store(run: Run, two: Two) -> None:
    assert run("fsck").stdout == "the store is whole: 2 patches\n"


def test_fsck_finds_a_damaged_file_and_says_so_in_its_exit_code(run: Run, two: Two, place: Path) -> None:
    path = next(place.rglob(f"{two[0]}*"))
    path.write_bytes(path.read_bytes()[:-1])
    result = run("fsck", code=1)
    assert result.stdout.startswith("damaged: ")
    assert read(run("fsck", "--json", code=1))["whole"] is False
    assert "error: " in run("apply", two[0], code=1).stderr
    assert read(run("status", "--json"))["active"] == []


def test_fsck_repair_registers_a_file_without_a_row(run: Run, two: Two, place: Path) -> None:
    patch = tiny_patch("Louvre", seed=5)
    with rompatch.open_store() as store:
        store.blobs.put(patch)
    assert "rompatch fsck --repair" in run("fsck", code=1).stderr
    assert run("fsck", "--repair").stdout.startswith("repaired: ")
    assert read(run("show", "Louvre", "--json"))["id"] == patch.id
    run("fsck")


def test_a_damaged_ledger_is_rebuilt_as_its_error_says(run: Run, two: Two, place: Path, tmp_path: Path) -> None:
    ledger = place / ".rompatch" / "ledger.db"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    advice = run("list", code=1).stderr
    assert "move it away" in advice
    assert "`rompatch use MODEL`" in advice
    assert "`rompatch fsck --repair`" in advice
    for path in ledger.parent.glob("ledger.db*"):
        path.rename(tmp_path / path.name)
    run("use", "smollm2-135m")
    assert run("fsck", "--repair").stdout.count("repaired: ") == 2
    assert run("fsck").stdout == "the store is whole: 2 patches\n"
    run("apply", *two)
    assert {one["id"][:12] for one in read(run("status", "--json"))["active"]} == set(two)


def test_a_store_may_be_named_before_or_after_the_command(run: Run, two: Two, place: Path, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    run("status", code=1)
    for args in (("--store", place, "list"), ("list", "--store", place / ".rompatch")):
        assert two[0] in run(*args).stdout
    assert two[0] in run("list", env={"ROMPATCH_STORE": str(place / ".rompatch")}).stdout


def test_the_store_is_found_from_below(run: Run, two: Two, place: Path) -> None:
    deep = place / "a" / "b"
    deep.mkdir(parents=True)
    os.chdir(deep)
    assert two[0] in run("list").stdout


def test_quiet_silences_notes_and_keeps_data(run: Run, two: Two) -> None:
    assert run("log", "--limit", 1).stderr
    for args in (("-q", "log"), ("log", "-q"), ("log", "--quiet")):
        result = run(*args, "--limit", 1)
        assert (result.stderr, bool(result.stdout)) == ("", True)


def test_colours_are_off_in_a_pipe_and_on_when_asked_for(run: Run, two: Two) -> None:
    assert "\x1b" not in run("list").stdout
    for args in (("--color", "list"), ("list", "--color")):
        assert "\x1b" in run(*args).stdout
    assert "\x1b" in run("list", "--color", env={"NO_COLOR": "1"}).stdout
    assert "\x1b" not in run("list", color=True, env={"NO_COLOR": "1"}).stdout
    assert "\x1b" in run("show", "--color", "nonsense", code=4).stderr
    assert "\x1b" not in run("show", "--no-color", "nonsense", code=4).stderr


def test_control_characters_of_a_patch_do_not_reach_the_terminal(run: Run, place: Path) -> None:
    put(tiny_patch("Tower\x1b[31m\x07", seed=9), place)
    for args in (("list",), ("log",), ("show", "Tower\x1b[31m\x07")):
        text = run(*args).stdout
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\\x1b[31m" in text


def test_wide_characters_keep_the_columns_aligned(run: Run, two: Two, place: Path) -> None:
    put(tiny_patch("東京タワー", "ローマ", seed=2), place)
    lines = run("list").stdout.splitlines()
    assert "東京タワー is located in" in lines[1]
    # Each wide character takes two columns, so the next cell starts at a smaller index by as many.
    assert lines[2].index("London") - lines[1].index("Paris") == len("東京タワー")


def test_stats_list_of_an_empty_cache_is_an_empty_list(run: Run, place: Path) -> None:
    found = read(run("stats", "list", "--json"))["statistics"]
    assert all(one["shipped"] for one in found)


def test_objects_have_one_name_everywhere(run: Run, two: Two) -> None:
    header = run("list").stdout.splitlines()[0]
    assert "true object  new object" in header
    shown = run("show", two[0]).stdout
    assert [line.split("  ")[0] for line in shown.splitlines() if " object" in line] == ["new object", "true object"]


def test_use_and_create_answer_an_unknown_model_alike(run: Run, two: Two) -> None:
    assert two, "there is a store"
    errors = [
        run("use", "./smolm2-135m", code=1).stderr,
        run("create", "a", "{} is", "b", "--model", "./smolm2-135m", code=1).stderr,
    ]
    assert errors[0] == errors[1]
    assert "Did you mean 'smollm2-135m'?" in errors[0]


def test_the_commands_on_stacks_say_what_they_did(run: Run, two: Two, place: Path) -> None:
    tower, bell = two
    run("apply", tower, "-m", "first", "--reason", "T-1")
    assert run("stack", "tag", "v1").stdout == "main@r1 is tagged 'v1'\n"
    assert "'trial' on pico with 1 patch" in run("stack", "new", "trial", "--from", "v1").stdout
    run("apply", bell)
    log = run("stack", "log").stdout.splitlines()
    assert log[2].startswith("r1 (v1) ")
    assert log[2].endswith("tester  first / T-1")
    assert run("stack", "diff", "v1").stdout == f"+ {bell}  Big Ben is in: London -> Paris\n"
    assert run("stack", "checkout", "v1").stdout.startswith(f"reverted {bell} (Big Ben -> Paris)\n")
    assert "r2 (apply)" in run("stack", "show", "r2").stdout
    assert [line[0] for line in run("stack", "list").stdout.splitlines()[1:]] == ["*", " "]
    assert "nothing was changed" in run("stack", "merge", "main@r2", "trial", "--dry-run").stderr
    assert "stack 'trial' is at revision 2 with 2 patches" in run("stack", "merge", "main@r2", "trial").stdout
    assert run("stack", "use", "trial").stdout == "stack 'trial' is active: r2 with 2 patches\n"
    assert "--force" in run("stack", "rm", "trial", code=1).stderr
    assert run("stack", "rm", "trial", "--force").stdout == "removed stack 'trial' with 2 patches\n"
    assert "rompatch stack use" in run("apply", bell, code=1).stderr
    assert "Did you mean 'main'" in run("stack", "use", "mian", code=4).stderr


def test_the_history_of_a_fact_tells_who_replaced_what(run: Run, two: Two, place: Path) -> None:
    assert "has expired" in run("apply", two[0], "--expires", "2001-01-31").stderr
    assert "1 patch of the stack expired" in run("status").stderr
    assert two[0] in run("list", "--expired").stdout
    assert "2001-01-31 (expired)" in run("show", two[0]).stdout
    berlin = put(tiny_patch(target_new="Berlin", seed=8), place)
    assert f"superseded {two[0]}" in run("apply", berlin, "--supersede", "--reason", "moved").stdout
    assert [line.rstrip().rsplit("  ", 1)[-1] for line in run("log").stdout.splitlines()][1] == "moved"
    told = run("history", "eiffel tower").stdout
    assert ["superseded", two[0]] in [line.split()[2:4] for line in told.splitlines()]
    assert f"replaces {two[0]} / moved" in told


def test_a_dry_merge_says_what_the_merge_would_do(run: Run, two: Two, place: Path) -> None:
    run("apply", two[0])
    run("stack", "new", "trial", "--use")
    run("apply", put(tiny_patch(target_new="Berlin", seed=8), place))
    run("stack", "use", "main")
    assert "would be refused: --ours or --theirs" in run("stack", "merge", "trial", "--dry-run").stderr
    assert "would keep theirs" in run("stack", "merge", "trial", "--theirs", "--dry-run").stderr


def test_list_and_log_come_in_pages_and_say_so(run: Run, two: Two) -> None:
    first, second = run("list", "--limit", 1), run("list", "--limit", 1, "--offset", 1)
    assert "--offset 1, or --all" in first.stderr
    assert (two[1] in first.stdout, two[0] in second.stdout, second.stderr) == (True, True, "")
    assert read(run("list", "--limit", 1, "--json"))["more"] is True
    assert read(run("list", "--all", "--json"))["more"] is False
