from __future__ import annotations

import math
from collections import Counter
from typing import Any

import naive
import pico
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rompatch.errors import ComputeError, SiteError, SuiteError, TargetError
from rompatch.models import wrap
from rompatch.sites import Site
from rompatch.verify import engine
from rompatch.verify.abilities import abilities_of, can_skip, layers_below
from rompatch.verify.engine import ScoredPrompt, Scorer
from rompatch.verify.layout import Batch, Limits, plain_batches
from rompatch.verify.prefix_tree import PrefixForest, cut, even_pieces
from rompatch.verify.updates import Edit, SiteTerm

TOWER = (
    ScoredPrompt("The Eiffel Tower is located in the city of", ("Rome", "Paris")),
    ScoredPrompt("The Eiffel Tower is located in", ("Rome", "Paris")),
    ScoredPrompt("Trains to Vienna leave from", ("Salzburg Hauptbahnhof", "Salzburg")),
    ScoredPrompt("Is it a matter of fact that Mozart was born in", ("Rome", "Zanzibar")),
)
BEN = (
    ScoredPrompt("Big Ben is in", ("Rome", "London")),
    ScoredPrompt("The Colosseum is located in the city of", ("London", "Rome")),
    ScoredPrompt("The Eiffel Tower is located in", ("London", "Paris")),
    ScoredPrompt("Big", ("Ben",)),
)
SUITES = [TOWER, BEN, TOWER]

ARCHITECTURES = (
    "gpt2",
    "llama",
    "bloom",
    "mistral",
    "gemma2",
    "gemma3_text",
    "opt",
    "gptj",
    "gpt_neo",
    "falcon",
    "phi",
)


def site_of(model: PreTrainedModel, layer: int) -> Site:
    return wrap(model, pico.toy_tokenizer()).site(layer)


def term(model: PreTrainedModel, layer: int, rank: int = 1, seed: int = 0, size: float = 0.3) -> SiteTerm:
    site, random = site_of(model, layer), torch.Generator().manual_seed(seed)
    left = torch.randn(site.d_out, rank, generator=random) * size
    return SiteTerm.of(site, left, torch.randn(rank, site.d_in, generator=random) * size)


def edits_of(model: PreTrainedModel) -> list[Edit]:
    """One of rank one, one of two sites and higher rank, one that changes nothing."""
    return [[term(model, 1)], [term(model, 1, 3, seed=1), term(model, 2, 2, seed=2)], []]


def windowed(model_type: str, **sizes: Any) -> PreTrainedModel:
    """A pico model with other sizes: windows narrower than the prompts."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=pico.VOCAB, initializer_range=0.2, pad_token_id=0, **{**pico.SIZES[model_type], **sizes}
    )
    return AutoModelForCausalLM.from_config(config).eval()


def scored(model: PreTrainedModel, max_tokens: int = 4096, start: bool = True) -> Scorer:
    return Scorer(model, pico.toy_tokenizer(), document_start=start, max_tokens=max_tokens)


def check_against_the_oracle(model: PreTrainedModel, max_tokens: int = 4096, start: bool = True) -> None:
    edits = edits_of(model)
    before, after = scored(model, max_tokens, start).score_edits(SUITES, edits)
    for suite, edit, old, new in zip(SUITES, edits, before, after, strict=True):
        naive.assert_same(old, naive.score_suite(model, pico.toy_tokenizer(), suite, start))
        with naive.in_the_weights(edit):
            naive.assert_same(new, naive.score_suite(model, pico.toy_tokenizer(), suite, start))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_scores_before_and_after_are_those_of_plain_passes_on_edited_weights(model_type: str) -> None:
    check_against_the_oracle(pico.pico_model(model_type))


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
@pytest.mark.parametrize("max_tokens", [1, 30])
def test_small_batches_change_nothing(model_type: str, max_tokens: int) -> None:
    check_against_the_oracle(pico.pico_model(model_type), max_tokens, start=False)


@pytest.mark.parametrize(
    "model", [windowed("mistral", sliding_window=4), windowed("gemma3_text", sliding_window=20)], ids=["narrow", "20"]
)
def test_attention_windows_narrower_than_a_prompt_are_kept(model: PreTrainedModel) -> None:
    check_against_the_oracle(model)


def test_a_prompt_beyond_the_window_is_scored_through_the_window() -> None:
    model = windowed("mistral", sliding_window=24)
    assert abilities_of(model, 0).packs
    prompts = [ScoredPrompt("Mozart was born in Salzburg, and " * 3 + "Big Ben is in", ("Rome", "London"))]
    naive.assert_same(scored(model).score(prompts), naive.score_suite(model, pico.toy_tokenizer(), prompts, True))


def test_edits_of_the_lowest_and_of_the_last_layer() -> None:
    model = pico.pico_model("llama")
    for layer in (0, 2):
        edit = [term(model, layer)]
        _, (after,) = scored(model).score_edits([TOWER], [edit])
        with naive.in_the_weights(edit):
            naive.assert_same(after, naive.score_suite(model, pico.toy_tokenizer(), TOWER, True))


def test_an_edit_without_terms_scores_as_before() -> None:
    before, after = scored(pico.pico_model("llama")).score_edits([TOWER], [[]])
    assert before == after


def test_no_edits_give_no_scores_after() -> None:
    model = pico.pico_model("llama")
    before, after = scored(model).score_edits([TOWER, BEN], [])
    assert after == []
    assert before[0] == scored(model).score(TOWER)


def test_one_edit_for_each_suite() -> None:
    with pytest.raises(ValueError, match="2 suites and 1 edits"):
        scored(pico.pico_model("llama")).score_edits([TOWER, BEN], [[]])


def test_what_prompts_begin_with_runs_once() -> None:
    model = pico.pico_model("llama")
    scorer = scored(model)
    assert abilities_of(model, 0).packs
    shapes: list[torch.Size] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, args, _o: shapes.append(args[0].shape))
    scorer.score(TOWER)
    handle.remove()
    prefixes = set()
    for prompt in TOWER:
        for target in prompt.targets:
            pair = engine.encode_pair(pico.toy_tokenizer(), prompt.text, target, True)
            ids = [*pair.prompt_ids, *pair.target_ids][:-1]
            prefixes |= {tuple(ids[: i + 1]) for i in range(len(ids))}
    assert shapes == [(1, len(prefixes))]


def test_layers_below_the_edit_run_for_the_pass_before_only() -> None:
    model = pico.pico_model("llama")
    scorer, edit = scored(model), [term(model, 1)]
    scorer.score_edits([TOWER], [edit])
    calls: Counter[int] = Counter()
    handles = [
        layer.mlp.register_forward_hook(lambda *_a, number=number: calls.update([number]))
        for number, layer in enumerate(model.model.layers)
    ]
    scorer.score_edits([TOWER], [edit])
    for handle in handles:
        handle.remove()
    assert calls == {0: 1, 1: 2, 2: 2}


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_logits_are_computed_at_scored_positions_alone(model_type: str) -> None:
    model = pico.pico_model(model_type)
    scorer, rows = scored(model), []
    scorer.score(TOWER)
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, args, _o: rows.append(args[0].shape[1]))
    scores = scorer.score(TOWER)
    handle.remove()
    positions = {
        (prompt.text, score.token_ids[:i])
        for prompt, found in zip(TOWER, scores, strict=True)
        for score in found
        for i in range(score.n_tokens)
    }
    assert sum(rows) == len(positions)


def test_a_head_that_cannot_be_found_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico.pico_model("llama")
    expected = naive.score_suite(model, pico.toy_tokenizer(), TOWER, True)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    naive.assert_same(scored(model).score(TOWER), expected)


def test_the_model_is_left_as_it_was() -> None:
    model = pico.pico_model("gpt2").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scored(model).score_edits(SUITES, edits_of(model))
    assert model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_differs_by_its_rounding(dtype: torch.dtype) -> None:
    whole, half = pico.pico_model("llama"), pico.pico_model("llama", dtype=dtype)
    for phase, rough in zip(
        scored(whole).score_edits([TOWER], [[term(whole, 1)]]),
        scored(half).score_edits([TOWER], [[term(half, 1)]]),
        strict=True,
    ):
        exact = [score.mean_logprob for found in phase[0] for score in found]
        assert [score.mean_logprob for found in rough[0] for score in found] == pytest.approx(exact, abs=0.3)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    MemoryError(),
)


@pytest.mark.parametrize(("model_type", "room"), [("llama", 40), ("bloom", 25)])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved(error: BaseException, model_type: str, room: int) -> None:
    model = pico.pico_model(model_type)
    suites, edits = [TOWER] * 3, [[term(model, 1, seed=seed)] for seed in range(3)]
    expected = scored(model).score_edits(suites, edits)
    sizes: list[int] = []

    def small_memory(_module: object, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(args[0].numel())
        if sizes[-1] > room:
            raise error

    model.get_input_embeddings().register_forward_pre_hook(small_memory)
    scorer = scored(model, max_tokens=150)
    for found, wanted in zip(scorer.score_edits(suites, edits), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            naive.assert_same(one, other)
    assert scorer.max_tokens < 150
    assert sum(size > room for size in sizes) <= 3  # it learns, and what was done stays done


def test_a_single_sequence_that_does_not_fit_is_an_error() -> None:
    model = pico.pico_model("llama")

    def no_memory(_module: object, _args: object) -> None:
        raise MemoryError

    model.model.layers[1].register_forward_pre_hook(no_memory)
    with pytest.raises(ComputeError, match="not enough memory to run a single sequence of"):
        scored(model).score(TOWER)


def test_other_failures_of_the_model_are_not_taken_for_memory() -> None:
    model = pico.pico_model("llama")
    scored(model).score(TOWER)

    def broken(_module: object, _args: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.model.layers[1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        scored(model).score(TOWER)


def test_nan_names_the_prompt_and_is_not_remembered_against_the_model() -> None:
    model = pico.pico_model("llama")
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    good = weight.data
    weight.data = torch.full_like(good, math.nan)
    with pytest.raises(ComputeError, match="The Eiffel Tower is located in the city of") as caught:
        scored(model).score(TOWER)
    assert caught.value.prompt == TOWER[0].text  # type: ignore[attr-defined]
    weight.data = good
    assert abilities_of(model, 0).packs


def test_an_update_that_does_not_fit_the_site_is_refused() -> None:
    site = site_of(pico.pico_model("llama"), 1)
    with pytest.raises(SiteError, match=r"does not fit the site model\.layers\.1"):
        SiteTerm.of(site, torch.zeros(site.d_in, 1), torch.zeros(1, site.d_out))


def test_an_update_that_is_not_finite_is_refused() -> None:
    site = site_of(pico.pico_model("llama"), 1)
    with pytest.raises(ComputeError, match="not finite"):
        SiteTerm.of(site, torch.full((site.d_out, 1), math.inf), torch.zeros(1, site.d_in))


def test_bad_prompts_are_named() -> None:
    scorer = scored(pico.pico_model("llama"), start=False)
    with pytest.raises(SuiteError, match="no tokens"):
        scorer.score([ScoredPrompt("", ("Rome",))])
    with pytest.raises(SuiteError, match="Paris, Paris") as caught:
        scorer.score([*TOWER, ScoredPrompt("Paris, " * 100, ("Rome",))])
    assert caught.value.prompt.startswith("Paris, ")  # type: ignore[attr-defined]
    with pytest.raises(TargetError, match="tokenises to nothing"):
        scorer.score([ScoredPrompt("Big Ben is in ", ("",))])


def test_progress_ends_at_the_number_of_positions() -> None:
    model, steps = pico.pico_model("llama"), []
    scored(model, max_tokens=30).score_edits(
        SUITES, edits_of(model), on_progress=lambda done, of: steps.append((done, of))
    )
    assert len(steps) > 2
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


def test_nothing_to_score_gives_nothing() -> None:
    assert scored(pico.pico_model("llama")).score([]) == []


@pytest.mark.parametrize("model_type", sorted(pico.SIZES))
def test_what_each_architecture_can_do_is_found(model_type: str) -> None:
    """Bloom takes no mask over pairs of tokens, and pico gpt_neo's window is narrower than the probe."""
    model = pico.pico_model(model_type)
    able = abilities_of(model, 0)
    assert able.packs == (model_type not in ("bloom", "gpt_neo"))
    assert able.gathers
    site = site_of(model, 2)
    assert can_skip(model, 0, layers_below(model, site.module_name, site.layer))


def forest_of(*sequences: tuple[int, ...]) -> PrefixForest:
    forest = PrefixForest()
    for sequence in sequences:
        forest.add(sequence)
    return forest


def test_sequences_share_what_they_begin_with_unless_their_edits_differ() -> None:
    forest = forest_of((1, 2, 3), (1, 2, 4), (5,))
    assert len(forest) == 5
    forest.add((1, 2, 4), edit=7)
    assert forest.tokens[5:] == [1, 2, 4]
    assert forest.unedited_twins() == [0, 1, 2, 3, 4, 0, 1, 3]
    assert forest.preorder(lambda edit: edit == 7) == [5, 6, 7]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 9, 20])
def test_every_piece_of_a_forest_has_the_ancestors_of_its_nodes(width: int) -> None:
    forest = forest_of((1, 2, 3, 4), (1, 2, 3, 5), (1, 6, 7), (1, 6, 8, 9), (2, 2), (2, 3, 1))
    for pieces in (cut(forest, forest.preorder(), width), even_pieces(forest, forest.preorder(), width)):
        assert {node for piece in pieces for node in piece} == set(range(len(forest)))
        for piece in pieces:
            assert len(piece) == len(set(piece)) <= max(width, 4)
            assert all(forest.parents[node] in {-1, *piece[:i]} for i, node in enumerate(piece))


def test_a_token_of_a_packed_row_sees_its_ancestors_and_itself() -> None:
    forest = forest_of((1, 2, 3), (1, 4), (5, 6))
    inputs = Batch([forest.preorder(), [4, 5]], packed=True).inputs(forest, 0, torch.float32)
    sees = inputs["attention_mask"][:, 0] == 0
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [5, 6, 0, 0, 0, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 1, 0, 1], [0, 1, 0, 0, 0, 0]]
    seen = [[[j for j, flag in enumerate(row) if flag] for row in rows] for rows in sees.tolist()]
    assert seen == [[[0], [0, 1], [0, 1, 2], [0, 3], [4], [4, 5]], [[0], [0, 1], [2], [3], [4], [5]]]


def test_plain_rows_are_padded_by_less_than_a_tenth() -> None:
    forest = PrefixForest()
    for length in [3, 30, 4, 17, 18, 18, 29, 5, 5, 5, 40, 18]:
        forest.add([length, *range(100, 100 + length)])
    batches = list(plain_batches(forest, forest.preorder(), frozenset(), Limits(4096, 4096)))
    real = sum(len(row) for batch in batches for row in batch.rows)
    assert real == len(forest)
    assert sum(batch.n_tokens for batch in batches) <= real / 0.9


@pytest.mark.parametrize(("limits", "largest"), [(Limits(60, 99), 60), (Limits(4096, 2), 40)])
def test_batches_keep_to_their_limits(limits: Limits, largest: int) -> None:
    forest = PrefixForest()
    ends = frozenset(forest.add([start, *range(19)])[-1] for start in range(100, 110))
    batches = list(plain_batches(forest, forest.preorder(), ends, limits))
    assert max(batch.n_tokens for batch in batches) == largest
    assert sum(len(batch.rows) for batch in batches) == 10


@pytest.mark.slow
@pytest.mark.parametrize("start", [True, False])
def test_the_default_model_scores_as_in_plain_passes_on_edited_weights(default_base, start: bool) -> None:
    model, tokenizer, site = default_base.model, default_base.tokenizer, default_base.site(4)
    random = torch.Generator().manual_seed(0)
    edits = []
    for _suite in (TOWER, BEN):
        key = torch.randn(1, site.d_in, generator=random) * 0.3
        edits.append([SiteTerm.of(site, torch.randn(site.d_out, 1, generator=random) * 0.3, key)])
    before, after = Scorer(model, tokenizer, document_start=start).score_edits([TOWER, BEN], edits)
    for suite, edit, old, new in zip((TOWER, BEN), edits, before, after, strict=True):
        naive.assert_same(old, naive.score_suite(model, tokenizer, suite, start))
        with naive.in_the_weights(edit):
            naive.assert_same(new, naive.score_suite(model, tokenizer, suite, start))
        assert (
            max(
                abs(a.mean_logprob - b.mean_logprob)
                for x, y in zip(old, new, strict=True)
                for a, b in zip(x, y, strict=True)
            )
            > 0.05
        )
