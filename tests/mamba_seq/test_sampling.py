"""Sampling against its definition, token by token; generation against the whole-sequence form."""

import math

import pytest
import torch

from mamba_seq import LanguageModel, MambaConfig, ModelConfig
from mamba_seq.sampling import as_generator, keep_likely, sample

CASES = [(1, None), (3, None), (40, None), (None, 0.05), (None, 0.5), (None, 0.9), (None, 1.0), (4, 0.7), (1, 0.1)]


def kept_by_definition(logits: list[float], top_k: int | None, top_p: float | None) -> set[int]:
    """The tokens that may be drawn from one row, one at a time from the most probable down."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or len(logits)]
    weights = [math.exp(logits[token]) for token in order]
    kept: set[int] = set()
    so_far = 0.0
    for token, weight in zip(order, weights, strict=True):
        if top_p is not None and top_p < 1 and so_far >= top_p:
            break
        kept.add(token)
        so_far += weight / sum(weights)
    return {token for token in kept if logits[token] > -math.inf}


@pytest.mark.parametrize(("top_k", "top_p"), CASES)
def test_kept_tokens_are_those_of_the_definition(top_k: int | None, top_p: float | None) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 11) * 2
    logits[::7, 3] = -math.inf
    before = logits.clone()
    kept = keep_likely(logits, top_k, top_p)
    assert torch.equal(logits, before)
    for row, original in zip(kept, logits, strict=True):
        wanted = kept_by_definition(original.tolist(), top_k, top_p)
        assert set((row > -math.inf).nonzero()[:, 0].tolist()) == wanted
        assert all(row[token] == original[token] for token in wanted)


def test_equal_logits_keep_the_first_in_the_vocabulary() -> None:
    assert (keep_likely(torch.zeros(1, 6), top_k=2)[0] > -math.inf).tolist() == [True, True, *[False] * 4]
    assert (keep_likely(torch.zeros(1, 4), top_p=0.5)[0] > -math.inf).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (4, None), (None, 0.8), (5, 0.9)])
def test_drawn_frequencies_are_the_probabilities(top_k: int | None, top_p: float | None) -> None:
    torch.manual_seed(0)
    temperature, draws = 0.7, 40_000
    logits = torch.randn(9)
    kept = kept_by_definition((logits / temperature).tolist(), top_k, top_p)
    weight = torch.tensor([math.exp(logits[t] / temperature) if t in kept else 0.0 for t in range(9)])
    tokens = sample(logits.expand(draws, 9), temperature, top_k, top_p, torch.Generator().manual_seed(1))
    frequency = tokens.bincount(minlength=9) / draws
    assert tokens.shape == (draws,)
    assert tokens.dtype == torch.int64
    assert all(frequency[token] == 0 for token in set(range(9)) - kept)
    # five standard deviations of a binomial share
    assert (frequency - weight / weight.sum()).abs().max() < 5 * 0.5 / math.sqrt(draws)


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, -1.0, 2.0]])
    assert sample(logits, temperature=0, top_k=1, top_p=0.1).tolist() == [1, 0]


def test_a_tiny_temperature_is_greedy_and_makes_no_infinities() -> None:
    assert sample(torch.tensor([[80.0, 81.0, -80.0]]).bfloat16(), temperature=1e-37).tolist() == [1]


def test_a_seed_gives_the_same_draws() -> None:
    logits = torch.zeros(1000, 5)
    draws = [sample(logits, generator=as_generator(seed, logits.device)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
)
def test_arguments_out_of_range_are_refused(lively: LanguageModel, arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        sample(torch.zeros(1, 3), **arguments)
    with pytest.raises(ValueError, match=f"{name} is "):
        lively.generate(torch.zeros(1, 3, dtype=torch.long), 2, **arguments)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def lively(request: pytest.FixtureRequest) -> LanguageModel:
    """A model whose next token depends much on what came before."""
    torch.manual_seed(3)
    config = MambaConfig(d_model=12, n_layer=2, d_state=5)
    model = LanguageModel(
        ModelConfig(task="language-model", backbone=config, vocab_size=13, tie_embeddings=request.param)
    )
    for parameter in model.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


def greedy_by_definition(model: LanguageModel, prompt: torch.Tensor, count: int) -> list[int]:
    tokens = prompt
    for _ in range(count):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens[None])[0, -1:].argmax(dim=-1)])
    return tokens.tolist()


def test_greedy_generation_is_that_of_the_whole_sequence(lively: LanguageModel) -> None:
    prompts = torch.randint(0, 13, (3, 10))
    tokens = lively.generate(prompts, 60, temperature=0)
    assert tokens.shape == (3, 70)
    assert not tokens.requires_grad
    for prompt, row in zip(prompts, tokens, strict=True):
        assert row.tolist() == greedy_by_definition(lively, prompt, 60)
    assert len(set(tokens[0, 10:].tolist())) > 3, "the model must not repeat itself, or the test says little"


def test_left_padded_prompts_go_on_as_if_alone(lively: LanguageModel) -> None:
    prompts = [torch.randint(0, 13, (n,)) for n in (9, 1, 4)]
    tokens = torch.full((3, 9), 12)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        tokens[i, 9 - len(prompt) :], mask[i, 9 - len(prompt) :] = prompt, True
    together = lively.generate(tokens, 30, mask=mask, temperature=0)
    for i, prompt in enumerate(prompts):
        alone = lively.generate(prompt[None], 30, temperature=0)[0, len(prompt) :]
        assert torch.equal(together[i, 9:], alone)
    assert torch.equal(together[:, :9], tokens)


def test_a_stop_token_ends_each_sequence_and_then_the_call(lively: LanguageModel) -> None:
    prompts = torch.randint(0, 13, (4, 6))
    free = lively.generate(prompts, 50, temperature=1.0, generator=5)[:, 6:]
    stop = int(free[0, 2])
    stopped = lively.generate(prompts, 50, temperature=1.0, generator=5, stop_token=stop)[:, 6:]
    ends = [row.tolist().index(stop) if stop in row.tolist() else 49 for row in stopped]
    assert stopped.shape[1] == max(ends) + 1
    assert ends[0] <= 2
    for row, end in zip(stopped, ends, strict=True):
        assert (row[end + 1 :] == stop).all()


def test_a_seed_repeats_a_generation(lively: LanguageModel) -> None:
    prompts = torch.randint(0, 13, (2, 5))
    again = [lively.generate(prompts, 40, top_k=8, top_p=0.95, generator=seed) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    shared = torch.Generator().manual_seed(1)
    assert torch.equal(again[0], lively.generate(prompts, 40, top_k=8, top_p=0.95, generator=shared))


def test_nothing_to_add_gives_the_prompt(lively: LanguageModel) -> None:
    prompts = torch.randint(0, 13, (2, 5))
    assert torch.equal(lively.generate(prompts, 0), prompts)


def test_prompts_that_cannot_be_continued_are_refused(lively: LanguageModel) -> None:
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="at least one token"):
        lively.generate(tokens[:, :0], 4)
    with pytest.raises(ValueError, match="pad prompts on the left"):
        lively.generate(tokens, 4, mask=torch.tensor([[True, True, True], [True, True, False]]))
    with pytest.raises(ValueError, match="max_new_tokens is -1"):
        lively.generate(tokens, -1)


def test_a_classifier_has_no_output_matrix_to_untie() -> None:
    backbone = MambaConfig(d_model=4, n_layer=1)
    with pytest.raises(ValueError, match="tie_embeddings"):
        ModelConfig(
            task="sequence-classification", backbone=backbone, vocab_size=5, labels=["a", "b"], tie_embeddings=False
        )
