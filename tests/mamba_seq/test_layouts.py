"""Packed, padded and chunked sequences are the sequences alone: outputs, states and every gradient, for every kind."""

import pytest
import torch
from torch import Tensor

from mamba_seq import Backbone, MambaState
from tests.kernels.compare import relative_error
from tests.mamba_seq.layouts import (
    KINDS,
    LAYOUTS,
    boundaries,
    pad,
    part,
    random_backbone,
    run,
    state_tensors,
    weighted_sum,
)

LENGTHS = {torch.float32: [63, 1, 2, 1000, 3, 17, 40], torch.float64: [7, 1, 2, 19, 3]}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def everything(
    backbone: Backbone,
    sequences: list[Tensor],
    before: list[list[MambaState]] | None,
    layout: str,
    chunk_size: int = 17,
) -> dict[str, Tensor]:
    """Return outputs, states and all gradients of one layout, by name."""
    sequences = [sequence.clone().requires_grad_() for sequence in sequences]
    if before is not None:
        before = [
            [MambaState(s.conv.clone().requires_grad_(), s.ssm.clone().requires_grad_(), s.discrete) for s in state]
            for state in before
        ]
    backbone.zero_grad()
    result = run(backbone, sequences, before, layout, chunk_size)
    found = {f"output {i}": out for i, out in enumerate(result.outputs)} | dict(state_tensors(result.states))
    weighted_sum(list(found.values())).backward()
    found |= {f"gradient of {name}": p.grad for name, p in backbone.named_parameters()}
    found |= {f"gradient of sequence {i}": sequence.grad for i, sequence in enumerate(sequences)}
    if before is not None:
        found |= {f"gradient of initial {name}": tensor.grad for name, tensor in state_tensors(before)}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("begun", [False, True], ids=["from-the-start", "from-a-state"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_the_sequences_alone(kind: str, dtype: torch.dtype, begun: bool) -> None:
    backbone = random_backbone(kind).to(dtype)
    sequences = [torch.randn(length, 12, dtype=dtype) for length in LENGTHS[dtype]]
    before = None
    if begun:
        with torch.no_grad():
            _, state = backbone(torch.randn(len(sequences), 9, 12, dtype=dtype), return_state=True)
        before = part(state, len(sequences))
    want = everything(backbone, sequences, before, "alone")
    for layout in LAYOUTS:
        got = everything(backbone, sequences, before, layout)
        errors = {name: relative_error(got[name], expected) for name, expected in want.items()}
        wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE[dtype]}
        assert not wrong, f"{layout}: {wrong}"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_on_a_gpu(kind: str) -> None:
    backbone = random_backbone(kind)
    sequences = [torch.randn(length, 12) for length in LENGTHS[torch.float32]]
    want = everything(backbone, sequences, None, "alone")
    backbone.cuda()
    for layout in ("alone", *LAYOUTS):
        got = everything(backbone, [sequence.cuda() for sequence in sequences], None, layout)
        errors = {name: relative_error(got[name], expected) for name, expected in want.items()}
        wrong = {name: error for name, error in errors.items() if not error <= 1e-4}
        assert not wrong, f"{layout}: {wrong}"
    with torch.no_grad():
        state = backbone.allocate_state(1)
        for x, out in zip(sequences[0].cuda(), want["output 0"], strict=True):
            assert (backbone.step(x[None], state)[0].cpu() - out).abs().max() <= 1e-4 * want["output 0"].abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_stack_of_long_sequences(kind: str) -> None:
    """Rounding through ten blocks; 1e-4 is what a transform of 2,049 steps in each may cost."""
    backbone = random_backbone(kind, n_layer=10)
    sequences = [torch.randn(length, 12) for length in (2049, 1000)]
    want = everything(backbone, sequences, None, "alone")
    for layout in ("packed", "right", "chunks"):
        got = everything(backbone, sequences, None, layout, chunk_size=683)
        errors = {name: relative_error(got[name], expected) for name, expected in want.items()}
        wrong = {name: error for name, error in errors.items() if not error <= 1e-4}
        assert not wrong, f"{layout}: {wrong}"


@pytest.mark.parametrize("length", [1, 3, 63, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_give_the_whole(kind: str, length: int) -> None:
    backbone = random_backbone(kind)
    hidden = torch.randn(3, length, 12)
    with torch.no_grad():
        whole, final = backbone(hidden, return_state=True)
        state = backbone.allocate_state(3)
        steps = torch.stack([backbone.step(hidden[:, t], state) for t in range(length)], dim=1)
        # and from a state that a chunk left
        half = length // 2
        first, middle = backbone(hidden[:, :half], return_state=True)
        rest = [backbone.step(hidden[:, t], middle) for t in range(half, length)]
    assert relative_error(steps, whole) <= 1e-5
    assert relative_error(torch.cat([first, torch.stack(rest, dim=1)], dim=1), whole) <= 1e-5
    for stepped in (state, middle):
        for got, want in zip(stepped, final, strict=True):
            assert relative_error(got.ssm, want.ssm) <= 1e-5
            assert relative_error(got.conv, want.conv) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_padding_alone_keeps_its_state(kind: str) -> None:
    backbone = random_backbone(kind)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0] = False
    with torch.no_grad():
        _, state = backbone(torch.randn(2, 9, 12), return_state=True)
        _, after = backbone(torch.randn(2, 5, 12), mask, state, return_state=True)
    for new, old in zip(after, state, strict=True):
        assert relative_error(new.ssm[0], old.ssm[0]) <= 1e-6
        assert torch.equal(new.conv[0], old.conv[0])
        assert not torch.equal(new.ssm[1], old.ssm[1])


@pytest.mark.parametrize("kind", ["selective", "time-invariant"])
def test_a_thousand_packed_sequences(kind: str) -> None:
    """Lengths 1 to 5; the last state of each comes from reaching back over its start."""
    backbone = random_backbone(kind, n_layer=1)
    lengths = torch.randint(1, 6, (1000,), generator=torch.Generator().manual_seed(2)).tolist()
    sequences = list(torch.randn(sum(lengths), 12).split(lengths))
    with torch.no_grad():
        rows, mask = pad(sequences, "right")
        want, want_state = backbone(rows, mask, return_state=True)
        got, state = backbone(torch.cat(sequences)[None], return_state=True, cu_seqlens=boundaries(lengths))
    assert relative_error(got[0], want[mask]) <= 1e-5
    assert relative_error(state[0].ssm, want_state[0].ssm) <= 1e-5
    assert relative_error(state[0].conv, want_state[0].conv) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_sequence_needs_no_state(kind: str) -> None:
    """The outputs do not depend on whether the state is asked for."""
    backbone = random_backbone(kind)
    hidden, packed = torch.randn(2, 21, 12), torch.randn(1, 21, 12)
    rows, mask = pad([torch.randn(n, 12) for n in (9, 4)], "left")
    cu_seqlens = boundaries([4, 1, 16])
    with torch.no_grad():
        assert relative_error(backbone(hidden), backbone(hidden, return_state=True)[0]) <= 1e-6
        with_state = backbone(packed, return_state=True, cu_seqlens=cu_seqlens)[0]
        assert relative_error(backbone(packed, cu_seqlens=cu_seqlens), with_state) <= 1e-6
        with_state = backbone(rows, mask, return_state=True)[0]
        assert relative_error(backbone(rows, mask)[mask], with_state[mask]) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_goes_through_every_kind(kind: str, shape: tuple[int, int]) -> None:
    backbone = random_backbone(kind)
    hidden, mask = torch.zeros(*shape, 12, requires_grad=True), torch.ones(shape, dtype=torch.bool)
    _, state = backbone(torch.randn(shape[0], 3, 12), return_state=True)
    for arguments in ((hidden,), (hidden, mask), (hidden, mask, state)):
        out, after = backbone(*arguments, return_state=True)
        assert out.shape == hidden.shape
        assert after[0].ssm.shape == (shape[0], 24, 5)
    for new, old in zip(after, state, strict=True):
        assert torch.equal(new.ssm, old.ssm)
        assert torch.equal(new.conv, old.conv)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([0, 3, 3, 9], dtype=torch.int32), "cu_seqlens must increase strictly from 0 to L = 9"),
        (torch.tensor([0, 3, 8], dtype=torch.int32), "cu_seqlens must increase strictly from 0 to L = 9"),
        (torch.tensor([0, 9]), "cu_seqlens has type int64, expected int32"),
    ],
)
def test_bad_boundaries_are_refused(cu_seqlens: Tensor, message: str) -> None:
    for kind in ("selective", "time-invariant"):
        with pytest.raises(ValueError, match=message):
            random_backbone(kind)(torch.randn(1, 9, 12), cu_seqlens=cu_seqlens)


def test_boundaries_with_a_mask_or_a_batch_are_refused() -> None:
    backbone, cu_seqlens = random_backbone(), boundaries([4, 5])
    with pytest.raises(ValueError, match="mask and cu_seqlens are both given"):
        backbone(torch.randn(1, 9, 12), torch.ones(1, 9, dtype=torch.bool), cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match="cu_seqlens needs batch 1, but got batch 2"):
        backbone(torch.randn(2, 9, 12), cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match=r"initial_state has shape \(1, .*expected \(S, D, K-1\)"):
        backbone(torch.randn(1, 9, 12), state=backbone.allocate_state(1), cu_seqlens=cu_seqlens)
