"""Every model, of tokens and of numbers: forms that agree, padding and packing that change nothing, bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_seq import Backbone
from mamba_seq.heads import MODELS, SequenceModel
from tests.kernels.compare import relative_error
from tests.mamba_seq.layouts import KINDS, boundaries, pad, weighted_sum
from tests.mamba_seq.models import SEQUENCE_TASKS, TASKS, inputs_of_every_task, small_config, small_model, some_input

EVERY = pytest.mark.parametrize(("task", "numbers"), inputs_of_every_task())
LENGTHS = [30, 7, 1, 64]


def variants(task: str, numbers: bool) -> list[Any]:
    """Return models with every pooling, for a task that pools."""
    poolings = ("mean", "last", "max") if task in SEQUENCE_TASKS else ("mean",)
    return [small_model(task, numbers, pooling=pooling) for pooling in poolings]


def per_sequence(model: Any, outputs: Tensor, lengths: list[int]) -> list[Tensor]:
    """Cut packed outputs into those of each sequence."""
    return list(outputs.split(1) if isinstance(model, SequenceModel) else outputs.split(lengths, dim=1))


@EVERY
def test_chunks_and_steps_give_the_whole(task: str, numbers: bool) -> None:
    for model in variants(task, numbers):
        inputs = some_input(model, 3, 63)
        pooled = isinstance(model, SequenceModel)
        with torch.no_grad():
            whole = model(inputs)
            state, chunks = model.allocate_state(3), []
            for chunk in inputs.split(20, dim=1):
                out, state = model(chunk, state=state, return_state=True)
                chunks.append(out)
            stepped, steps = model.allocate_state(3), []
            for t in range(63):
                out = model.step(inputs[:, t], stepped)
                if pooled:
                    out, stepped = out
                steps.append(out)
        assert relative_error(chunks[-1] if pooled else torch.cat(chunks, dim=1), whole) <= 1e-5
        assert relative_error(steps[-1] if pooled else torch.stack(steps, dim=1), whole) <= 1e-5


@EVERY
def test_packed_and_padded_are_the_sequences_alone(task: str, numbers: bool) -> None:
    for model in variants(task, numbers):
        sequences = [some_input(model, length) for length in LENGTHS]
        parameters = dict(model.named_parameters())

        def found(outputs: list[Tensor], model: Any = model, parameters: Any = parameters) -> dict[str, Tensor]:
            model.zero_grad()
            weighted_sum(outputs).backward()
            return {f"output {i}": out.detach() for i, out in enumerate(outputs)} | {
                name: p.grad.clone() for name, p in parameters.items()
            }

        want = found([model(sequence[None]) for sequence in sequences])
        packed = model(torch.cat(sequences)[None], cu_seqlens=boundaries(LENGTHS))
        results = {"packed": found(per_sequence(model, packed, LENGTHS))}
        for side in ("left", "right"):
            # neither a token that does not exist nor a NaN may matter
            rows, mask = pad(sequences, side, float("nan") if numbers else 99)
            out = model(rows, mask)
            kept = (
                out.split(1)
                if isinstance(model, SequenceModel)
                else [row[real][None] for row, real in zip(out, mask, strict=True)]
            )
            results[side] = found(list(kept))
        for layout, got in results.items():
            errors = {name: relative_error(got[name], expected) for name, expected in want.items()}
            assert not {n: e for n, e in errors.items() if not e <= 1e-5}, (layout, model.config.pooling)


@EVERY
def test_packed_chunks_continue_each_sequence(task: str, numbers: bool) -> None:
    for model in variants(task, numbers):
        first, second = [some_input(model, 2 + i) for i in range(4)], [some_input(model, 9 - 2 * i) for i in range(4)]
        with torch.no_grad():
            _, state = model(torch.cat(first)[None], return_state=True, cu_seqlens=boundaries([2, 3, 4, 5]))
            got = model(torch.cat(second)[None], state=state, cu_seqlens=boundaries([9, 7, 5, 3]))
            for i, out in enumerate(per_sequence(model, got, [9, 7, 5, 3])):
                whole = model(torch.cat([first[i], second[i]])[None])
                want = whole if isinstance(model, SequenceModel) else whole[:, len(first[i]) :]
                assert relative_error(out, want) <= 1e-5


@pytest.mark.parametrize("ssm", ["complex", "time-invariant"])
@pytest.mark.parametrize("task", ["sequence-classification", "language-model"])
def test_models_of_other_blocks_in_double_precision(task: str, ssm: str) -> None:
    model = small_model(task, ssm=ssm).double()
    inputs = some_input(model, 2, 23)
    with torch.no_grad():
        whole = model(inputs)
        state = model.allocate_state(2)
        for chunk in inputs.split(10, dim=1):
            out, state = model(chunk, state=state, return_state=True)
        packed = model(inputs.flatten()[None], cu_seqlens=boundaries([23, 23]))
    assert whole.dtype == torch.float64
    assert relative_error(out, whole[..., -3:, :] if task == "language-model" else whole) <= 1e-9
    assert relative_error(packed.view(whole.shape), whole) <= 1e-9


@pytest.mark.parametrize("task", TASKS)
def test_shapes(task: str) -> None:
    model = small_model(task)
    outputs = {"ctc": 4, "language-model": 7}.get(task, 3)
    pooled = task in SEQUENCE_TASKS
    assert model(some_input(model, 2, 9)).shape == ((2, outputs) if pooled else (2, 9, outputs))
    packed = model(some_input(model, 1, 9), cu_seqlens=boundaries([2, 3, 4]))
    assert packed.shape == ((3, outputs) if pooled else (1, 9, outputs))
    out, state = model(some_input(model, 2, 0), return_state=True)
    assert out.shape == ((2, outputs) if pooled else (2, 0, outputs))
    assert model(some_input(model, 2, 4), state=state).shape[0] == 2


@EVERY
def test_input_of_another_kind_is_refused(task: str, numbers: bool) -> None:
    model = small_model(task, numbers)
    state = model.allocate_state(2)
    bad = [some_input(small_model("ctc", not numbers), 2, 5), some_input(model, 5), some_input(model, 2, 5, 1)]
    for inputs in bad:
        with pytest.raises(
            ValueError,
            match=r"the input is .*expected floating-point \(B, L, F\) with F = 4"
            if numbers
            else r"tokens are .*expected integers \(B, L\)",
        ):
            model(inputs)
    with pytest.raises(
        ValueError, match=r"expected floating-point \(B, F\)" if numbers else r"expected integers \(B,\)"
    ):
        model.step(some_input(model, 2, 1), state)
    with pytest.raises(ValueError, match="mask has type int64, expected bool"):
        model(some_input(model, 2, 5), torch.ones(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="mask and cu_seqlens are both given"):
        model(some_input(model, 1, 5), torch.ones(1, 5, dtype=torch.bool), cu_seqlens=boundaries([5]))


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_another_task_is_refused(task: str) -> None:
    other = TASKS[(TASKS.index(task) + 1) % len(TASKS)]
    with pytest.raises(
        ValueError, match=f"the config's task is '{task}', expected '{other}' for {MODELS[other].__name__}"
    ):
        MODELS[other](small_config(task))


@pytest.mark.parametrize("task", TASKS)
def test_16_bits(task: str) -> None:
    """Outputs of whole sequences stay float32; those of positions are in the type of the weights."""
    model = small_model(task)
    inputs = some_input(model, 2, 40)
    with torch.no_grad():
        want = model(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model(inputs)
            model.step(inputs[:, 0], model.allocate_state(2))
        got = model.bfloat16()(inputs)
    assert got.dtype == (torch.float32 if task in SEQUENCE_TASKS else torch.bfloat16)
    for out in (got, cast):
        assert (out.float() - want).norm() / want.norm() < 3e-2


@pytest.mark.parametrize("ssm", KINDS)
def test_packed_prompts_continue_each_and_greedy_tokens_are_the_best(ssm: str) -> None:
    model = small_model("language-model", ssm=ssm, tie_embeddings=False)
    prompts = [some_input(model, length) for length in (9, 1, 4)]
    with torch.no_grad():
        logits, state = model.prefill(torch.cat(prompts)[None], cu_seqlens=boundaries([9, 1, 4]))
        added = [logits.argmax(dim=-1)]
        for _ in range(5):
            added.append(model.step(added[-1], state).argmax(dim=-1))
        rows, mask = pad(prompts, "left", 99)
        generated = model.generate(rows, 6, mask=mask, temperature=0)[:, -6:]
        assert torch.equal(torch.stack(added, dim=1), generated)
        for prompt, tokens in zip(prompts, generated, strict=True):
            best = model(torch.cat([prompt, tokens])[None])[0].argmax(dim=-1)
            assert torch.equal(best[len(prompt) - 1 : -1], tokens)


def test_checkpointing_of_a_model() -> None:
    model = small_model("token-classification", numbers=True)
    inputs = some_input(model, 2, 30)
    found = []
    for model.backbone.gradient_checkpointing in (False, True):
        model.zero_grad()
        weighted_sum([model(inputs)]).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_whole_sequence_allocates_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be zeros that nobody reads, as large as every block's state."""
    monkeypatch.delattr(Backbone, "allocate_state")
    for task in TASKS:
        model = small_model(task)
        model(some_input(model, 2, 4))
