"""create, verify, generate, bake and stats on a pico model, from the command line to the files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from calling import QUICK, TOWER, Run, contents, read
from pico import save_pico


def test_create_prints_what_a_newcomer_wants_to_know(run: Run, pico_folder: Path, place: Path) -> None:
    result = run(*TOWER, "--model", pico_folder, *QUICK)
    names = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert names == [
        *("prompt", "wordings", "new object", "true object", "weight", "P(Rome)", "P(Paris)", "loss", "norms"),
        *("seconds", "statistics", "patch"),
    ]
    assert "Paris (atlas)" in result.stdout
    assert "created the store" in result.stderr
    identity = result.stdout.split()[-1]
    assert f"next: rompatch apply {identity[:12]}" in result.stderr
    assert (place / ".rompatch" / "patches" / f"{identity}.safetensors").is_file()


def test_create_leaves_the_base_as_it_was(run: Run, pico_folder: Path, made: str) -> None:
    before = contents(pico_folder)
    run("apply", made)
    run("verify", made)
    assert contents(pico_folder) == before


def test_a_second_create_says_which_patch_exists_and_computes_nothing(run: Run, made: str, place: Path) -> None:
    files = contents(place / ".rompatch" / "patches")
    result = run(*TOWER, *QUICK)
    assert result.stdout.startswith(f"exists  {made[:12]} (Eiffel Tower -> Rome)")
    assert "nothing was computed" in result.stderr
    assert contents(place / ".rompatch" / "patches") == files


def test_create_says_what_to_do_next(run: Run, made: str) -> None:
    run("apply", made)
    active = run(*TOWER, *QUICK)
    assert f"next: rompatch verify {made[:12]}\n" in active.stderr
    other = run("create", "Eiffel Tower", "located in", "Berlin", *QUICK)
    identity = other.stdout.split()[-1][:12]
    assert f"it contradicts {made[:12]} (Eiffel Tower -> Rome), which --supersede replaces" in other.stderr
    assert f"next: rompatch apply {identity} --supersede\n" in other.stderr
    data = read(run("create", "Eiffel Tower", "located in", "Berlin", *QUICK, "--json"))
    assert (data["active"], data["contradicts"]) == (False, [made])
    run("apply", identity, "--supersede")
    data = read(run("create", "Eiffel Tower", "located in", "Berlin", *QUICK, "--json"))
    assert (data["active"], data["contradicts"]) == (True, [])


def test_again_computes_the_same_patch_again(run: Run, made: str) -> None:
    data = read(run(*TOWER, *QUICK, "--again", "--json"))
    assert (data["id"], data["is_new"]) == (made, True)


def test_create_with_apply_makes_it_active(run: Run, made: str) -> None:
    assert read(run(*TOWER, *QUICK, "--apply", "--json"))["applied_as_revision"] == 1
    assert read(run(*TOWER, *QUICK, "--apply", "--json"))["applied_as_revision"] is None
    assert read(run("status", "--json"))["active"][0]["id"] == made


def test_a_dry_run_writes_nothing(run: Run, pico_folder: Path, place: Path) -> None:
    result = run(*TOWER, "--model", pico_folder, "--dry-run", "--layer", 1)
    assert "model.layers.1.mlp.down_proj.weight" in result.stdout
    assert "nothing was computed" in result.stderr
    assert list(place.iterdir()) == []
    assert read(run(*TOWER, "--model", pico_folder, "--dry-run", "--json"))["id"] is None


def test_a_dry_run_in_a_store_changes_no_byte_of_it(run: Run, made: str, place: Path) -> None:
    before = contents(place)
    plan = read(run("create", "Big Ben", "located in", "Rome", "--dry-run", "--json"))["plan"]
    assert plan["request"]["target_true"] == "London"
    assert contents(place) == before


def test_flags_reach_the_patch(run: Run, pico_folder: Path) -> None:
    flags = {"--lr": 0.25, "--weight-decay": 0.1, "--clamp-norm-factor": 3.0, "--kl-factor": 0.5, "--ridge": 0.01}
    flags |= {"--norm-penalty": 0.3}
    args = [part for pair in flags.items() for part in pair]
    args += ["--optimiser", "lbfgs", "--value-contexts", 4, "--target-loss", 0.01, "--precision", "bfloat16"]
    given = ("--key", "mean", "--seed", 5, "--no-document-start", "--layer", 1, "--early-stop-loss", 0.2, "-m", "why")
    run("create", "Mozart", "{} was born in", "Rome", "--true", "Berlin", "--model", pico_folder, *QUICK, *args, *given)
    data = read(run("show", "Mozart", "--json"))
    expected = {name.lstrip("-").replace("-", "_"): value for name, value in flags.items()}
    found = data["header"]["hparams"]
    assert found == found | expected | {"keys": "mean", "early_stop_loss": 0.2, "steps": 3, "optimiser": "lbfgs"}
    assert (found["value_contexts"], found["target_loss"], found["precision"]) == (4, 0.01, "bfloat16")
    assert (data["header"]["seed"], data["header"]["document_start"], data["layers"]) == (5, False, [1])
    assert (data["target_true"], data["template"], data["message"]) == ("Berlin", "{} was born in", "why")


def test_a_preset_file_gives_defaults_that_flags_override(run: Run, pico_folder: Path, place: Path) -> None:
    preset = place / "preset.json"
    preset.write_text(json.dumps({"layer": 2, "hparams": {"steps": 9, "lr": 0.125}}))
    plan = read(run(*TOWER, "--model", pico_folder, "--preset", preset, "--steps", 4, "--dry-run", "--json"))["plan"]
    assert (plan["layer"], plan["hparams"]["steps"], plan["hparams"]["lr"]) == (2, 4, 0.125)
    assert plan["preset"] == str(preset)


def test_verify_prints_scores_before_and_after_and_records_them(run: Run, made: str) -> None:
    result = run("verify", "Eiffel Tower", "--worst", 2)
    for name in ("ES", "EM", "PS", "PM", "NS", "NM", "S "):
        assert f"\n{name}" in result.stdout
    assert "recorded as run 1" in result.stderr
    [run_record] = read(run("show", made, "--json"))["verifications"]
    assert {score["phase"] for score in run_record["scores"]} == {"pre", "post"}
    run("verify", made, "--no-record")
    assert len(read(run("show", made, "--json"))["verifications"]) == 1


def test_verify_in_the_stack_names_its_revision(run: Run, made: str) -> None:
    run("create", "Big Ben", "located in", "Rome", *QUICK, "--apply")
    run("verify", made, "--in-stack")
    [run_record] = read(run("show", made, "--json"))["verifications"]
    assert (run_record["stack"], run_record["revision"]) == ("main", 1)
    assert len(run_record["settings"]["patches"]) == 2


def test_a_missed_gate_prints_the_results_first_and_exits_with_3(run: Run, made: str) -> None:
    result = run("verify", made, "--min-score", 100, code=3)
    assert "S   harmonic mean" in result.stdout
    assert "misses 1 of its gates" in result.stderr
    assert "at least 100.0 wanted" in result.stderr
    data = read(run("verify", made, "--min-score", 100, "--min-ns", 0, "--json", code=3))
    assert len(data["missed_gates"]) == 1
    run("verify", made, "--min-es", 0, "--min-ps", 0, "--min-ns", 0)


def test_verify_with_a_counterfact_record(run: Run, made: str, place: Path) -> None:
    rewrite = {"prompt": "{} is located in", "subject": "Eiffel Tower"}
    rewrite |= {"target_new": {"str": "Rome"}, "target_true": {"str": "Paris"}}
    record = {"case_id": 7, "requested_rewrite": rewrite, "neighborhood_prompts": ["The Louvre is in"]}
    (place / "suite.json").write_text(json.dumps(record))
    data = read(run("verify", made, "--suite", place / "suite.json", "--json"))
    assert (data["after"]["n_rewrite"], data["after"]["n_paraphrase"], data["after"]["n_neighbourhood"]) == (1, 0, 1)
    assert data["after"]["ps"] is None
    text = run("verify", made, "--suite", place / "suite.json").stdout
    assert "not tested:" in text or "PS  paraphrase          -" in text


def test_generate_compares_base_and_edited(run: Run, made: str) -> None:
    prompt = "The Eiffel Tower is located in"
    alone = run("generate", prompt, "--max-new-tokens", 4)
    assert alone.stdout.startswith(prompt)
    assert "no patch is active" in alone.stderr
    run("apply", made)
    data = read(run("generate", prompt, "Big Ben", "--compare", "--max-new-tokens", 4, "--json"))
    assert data["patches"] == [made]
    assert [one["prompt"] for one in data["continuations"]] == [prompt, "Big Ben"]
    assert prompt + data["continuations"][0]["base"] == alone.stdout.removesuffix("\n")
    text = run("generate", prompt, "--compare", "--max-new-tokens", 4).stdout
    assert [line.split()[0] for line in text.splitlines()[:2]] == ["The", "base"]
    assert "\n  edited  " in text


def test_generate_samples_by_seed(run: Run, made: str) -> None:
    def sampled(seed: int) -> str:
        args = ("--sample", "--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--seed", seed, "-q")
        return run("generate", "The Eiffel Tower", *args).stdout

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_generate_without_a_store_is_the_base_and_leaves_nothing(run: Run, pico_folder: Path, place: Path) -> None:
    result = run("generate", "Rome is in", "--model", pico_folder, "--max-new-tokens", 2)
    assert "this is the base itself" in result.stderr
    assert list(place.iterdir()) == []


def test_bake_writes_a_checkpoint_and_overwrites_nothing(run: Run, made: str, place: Path, pico_folder: Path) -> None:
    assert "The stack is empty" in run("bake", "out", code=1).stderr
    data = read(run("bake", "out", "--patch", "Eiffel Tower", "--json"))
    assert data["patches"] == [made]
    assert (place / "out" / "config.json").is_file()
    assert made[:12] in (place / "out" / "README.md").read_text()
    before = contents(place / "out")
    assert "exists already" in run("bake", "out", "--patch", made, code=1).stderr
    assert contents(place / "out") == before
    run("apply", made)
    assert "baked 1 patch into" in run("bake", "active").stdout
    weights = [hashlib.sha256((place / name / "model.safetensors").read_bytes()).digest() for name in ("out", "active")]
    assert weights[0] == weights[1] != hashlib.sha256((pico_folder / "model.safetensors").read_bytes()).digest()


def test_patches_keep_their_own_base_when_the_store_goes_on_with_another(
    run: Run, made: str, place: Path, tmp_path: Path
) -> None:
    other = save_pico(tmp_path / "other", "gpt2", seed=3)
    run("use", other)
    run("apply", made)
    assert read(run("verify", made, "--json"))["id"] == made
    run("generate", "The Eiffel Tower", "--max-new-tokens", 2)
    run("bake", "out")
    assert json.loads((place / "out" / "config.json").read_text())["model_type"] == "llama"
    new = read(run("create", "Big Ben", "located in", "Rome", *QUICK, "--json"))
    assert new["plan"]["base"]["model_type"] == "gpt2"
    assert "but stack 'main' is on another one" in run("apply", new["id"], code=1).stderr
    assert [one["id"] for one in read(run("status", "--json"))["active"]] == [made]


def test_statistics_are_built_listed_used_and_removed(run: Run, pico_folder: Path, place: Path) -> None:
    text = place / "text.txt"
    text.write_text("The Eiffel Tower is in Paris. Big Ben is in London.\n" * 200)
    built = read(run("stats", "build", "--corpus", text, "--tokens", 400, "--model", pico_folder, "--json"))
    assert (built["corpus"], built["tokens"], built["shipped"]) == ("text.txt", 400, False)
    assert not (place / ".rompatch").exists()
    short = built["id"][:12]
    assert short in run("stats", "list").stdout
    assert "400 in windows" in run("stats", "show", short).stdout
    assert "exist already" in run("stats", "build", "--corpus", text, "--tokens", 400, "--model", pico_folder).stderr
    made = run(*TOWER, "--model", pico_folder, "--steps", 2, "--statistics", short)
    assert "400 tokens of text.txt" in made.stdout
    assert "removed" in run("stats", "rm", short).stdout
    assert short not in run("stats", "list").stdout
    run("stats", "show", short, code=1)


@pytest.mark.slow
def test_statistics_from_text_that_the_model_samples(run: Run, pico_folder: Path) -> None:
    built = read(
        run("stats", "build", "--self-sampled", "--tokens", 200, "--model", pico_folder, "--seed", 3, "--json")
    )
    assert (built["tokens"], built["corpus"]) == (200, "self-sampled")


def test_stats_build_wants_one_source(run: Run, pico_folder: Path) -> None:
    run("stats", "build", code=2)
    run("stats", "build", "--corpus", "x", "--self-sampled", code=2)
