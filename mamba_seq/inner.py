"""The inside of a selective block, from in_proj's output to out_proj's, with a backward pass of its own.

Autograd would keep what every operator reads: u, delta, y and both halves of in_proj's output, 10 bytes a position and
channel in 16 bits, and states. Here the backward pass makes again what costs little, and the gradients of x and z are
written where in_proj's backward pass reads them, with no copy to bring them together.

    kept         in_proj's and x_proj's outputs, and the states that the scan keeps
    made again   u (about the time of a copy) and delta (a thin matrix product)
    y            made again from the kept states where these lie far apart; kept where they are close, which is where
                 they are few

`normed.py` does the same for the normalisation and in_proj in front: it keeps the residual stream alone. Matrix
products take rows (B L, channels), weights are cast once for both passes, and nothing that was made here is checked:
the time of short sequences is that of Python.

Shapes: B batch, L length, D channels of the scan, N state size, R rank of delta, K taps, S packed sequences, P columns
of x_proj's output.
"""

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mamba_seq.history import last_inputs
from mamba_seq.kernels._checks import check_boundaries, check_causal_conv1d, check_selective_scan
from mamba_seq.kernels._dispatch import choose
from mamba_seq.kernels._library import is_traced
from mamba_seq.kernels.causal_conv1d import function as convolution
from mamba_seq.kernels.selective_scan import function as scan
from mamba_seq.padding import at_least_float32
from mamba_seq.precision import without_autocast

Keep = Literal["auto", "autograd", "everything", "little"]
"""What a selective block keeps for its backward pass: what autograd does, operator by operator; with the backward pass
of this file, u, delta and y too, or as little as the head of the file says. "auto" is little on CUDA, else autograd."""

NO_STEP = -1e4
"""A raw delta whose softplus is exactly 0 in float32: the state passes a masked position unchanged."""

SPARSE_FROM = 1 << 26
"""Elements of u from which the scan's states are kept far apart, and y is not: close states and y take 6 bytes an
element in 16 bits, 400 MB here. Making them again is one more pass of the scan."""


class Weights(NamedTuple):
    """The parameters of the inside of a block."""

    conv_weight: Tensor
    """(D, K)."""
    conv_bias: Tensor | None
    """(D,)."""
    x_proj: Tensor
    """(P, D): delta's factor, B and C of the convolved input; P is R + 2 N, or R + 4 N where A is complex."""
    dt_proj: Tensor
    """(D, R)."""
    A_log: Tensor
    """(D, N), float32: A is -exp(A_log), or has it as its real part."""
    A_imag: Tensor | None
    """(D, N), float32, where A is complex."""
    D: Tensor
    """(D,), float32."""
    dt_bias: Tensor
    """(D,), float32."""
    out_proj: Tensor
    """(d_model, D)."""
    out_bias: Tensor | None
    """(d_model,)."""


class Layout(NamedTuple):
    """What surrounds the sequences: padding or boundaries, and the states before them."""

    mask: Tensor | None
    """Bool (B, L), true at real positions."""
    cu_seqlens: Tensor | None
    """(S+1,) int32."""
    conv_state: Tensor | None
    """(B or S, D, K-1)."""
    ssm_state: Tensor | None
    """(B or S, D, N)."""

    @property
    def given(self) -> bool:
        """Tell whether there is anything but a mask."""
        return self.cu_seqlens is not None or self.conv_state is not None or self.ssm_state is not None


def runs_inside(like: Tensor, keep: Keep, mask: Tensor | None, conv_state: Tensor | None) -> bool:
    """Tell whether `inside` takes a call on an input such as `like` (B, L, ...).

    Not while tracing, not on the reference, not a chunk that goes on inside padding.
    """
    if keep == "autograd" or (keep == "auto" and like.device.type != "cuda"):
        return False
    if is_traced() or like.numel() == 0 or not torch.is_grad_enabled() or (mask is not None and conv_state is not None):
        return False
    return choose("selective_scan", None, like) != "reference"


def is_plain(*layers: nn.Module) -> bool:
    """Tell whether layers are nothing but linear maps, whose weights may be used without calling them."""
    return all(
        type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers
    )


def inside(
    xz: Tensor, weights: Weights, layout: Layout, return_state: bool, keep: Keep
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Convolve, select, scan, gate and project: in_proj's output (B, L, 2 D) to the block's (B, L, d_model).

    Args:
        xz: the convolution's input and the gate, side by side; its type is what all is computed in.
        weights: in xz's type, or float32.
        layout: mask and boundaries not together, a mask and a state of the convolution not either.
        return_state: also return the state of the convolution.
        keep: what to keep for the backward pass.

    Returns:
        out (B, L, d_model), the last K - 1 inputs of the convolution (B or S, D, K-1) or None, and the state of the
        recurrence (B or S, D, N). Differentiable in xz, the weights and the states, once.
    """
    out, conv_state, ssm_state = Inside.apply(xz, *weights, *layout, return_state, keep)
    return out, conv_state, ssm_state


class Operands(NamedTuple):
    """The parameters as the operators take them, projections in the type that is computed in."""

    conv_weight: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_proj: Tensor
    A: Tensor
    """(D, N), float32 or complex64."""
    D: Tensor
    dt_bias: Tensor
    out_proj: Tensor
    out_bias: Tensor | None

    @classmethod
    def prepare(cls, weights: Weights, dtype: torch.dtype) -> "Operands":
        """Make A, and cast what is not in `dtype`."""
        A = torch.exp(weights.A_log).neg_()
        return cls(
            weights.conv_weight,
            weights.conv_bias,
            weights.x_proj.to(dtype),
            weights.dt_proj.to(dtype),
            A if weights.A_imag is None else torch.complex(A, weights.A_imag),
            weights.D,
            weights.dt_bias,
            weights.out_proj.to(dtype),
            None if weights.out_bias is None else weights.out_bias.to(dtype),
        )


class Inside(torch.autograd.Function):
    """`inside` with its gradient."""

    @staticmethod
    def forward(ctx: Any, xz: Tensor, *others: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return what `inside` does."""
        weights, layout = Weights(*others[:10]), Layout(*others[10:14])
        return_state, keep = others[14:]
        backend = choose("selective_scan", None, xz)
        with without_autocast(xz):
            ops = Operands.prepare(weights, xz.dtype)
            x, z = convolved_and_gate(xz, layout.mask)
            if layout.given:
                check_causal_conv1d(x, *ops[:2], "silu", layout.conv_state, layout.cu_seqlens)
            if layout.cu_seqlens is not None:
                check_boundaries(layout.cu_seqlens, xz.shape[1])
            u = convolve(x, ops, layout, backend)
            projected = rows(u).mm(ops.x_proj.t())
            delta, B, C = select(projected, u.shape, ops, layout.mask)
            if layout.given:
                check_selective_scan(u, delta, ops.A, B, C, ops.D, z, ops.dt_bias, layout.ssm_state, layout.cu_seqlens)
            sparse = keep == "little" and u.numel() >= SPARSE_FROM and scan.writes_into(backend)
            again = keep != "everything" and scan.can_repeat(u, ops.A, B, C, layout.cu_seqlens, backend, sparse)
            recurrence = (ops.D, z, ops.dt_bias, True, layout.ssm_state, layout.cu_seqlens)
            y, ssm_state, states = scan.run(u, delta, ops.A, B, C, *recurrence, backend, keep=True, sparse=sparse)
            out = product(rows(y), ops.out_proj, ops.out_bias).view(*u.shape[:2], -1)
            conv_state = None
            if return_state:
                taps = ops.conv_weight.shape[1]
                conv_state = last_inputs(x, taps, layout.conv_state, layout.mask, layout.cu_seqlens)
        ctx.backend = backend
        ctx.types = [None if w is None else w.dtype for w in weights]
        kept = (u, delta) if keep == "everything" else (None, None)
        ctx.save_for_backward(xz, projected, *kept, None if again else y, *ops, *layout, *states)
        ctx.set_materialize_grads(False)
        return out, conv_state, ssm_state

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dconv_state: Tensor | None, dssm_state: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument."""
        xz, projected, *kept = ctx.saved_tensors  # read once: activation checkpointing allows no more
        ops, layout = Operands(*kept[3:12]), Layout(*kept[12:16])
        with without_autocast(xz):
            gradients, dxz, dconv, dssm = differentiate(
                (dout, dconv_state, dssm_state),
                xz,
                projected,
                kept[:3],
                kept[16:],
                ops,
                layout,
                Weights(*ctx.needs_input_grad[1:11]),
                ctx.backend,
            )
            typed = [None if g is None else g.to(t) for g, t in zip(gradients, ctx.types, strict=True)]
        return dxz, *typed, None, None, dconv, dssm, None, None


def differentiate(
    above: tuple[Tensor | None, Tensor | None, Tensor | None],
    xz: Tensor,
    projected: Tensor,
    kept: list[Tensor | None],
    states: list[Tensor],
    ops: Operands,
    layout: Layout,
    wanted: Any,
    backend: str,
) -> tuple[tuple[Tensor | None, ...], Tensor, Tensor | None, Tensor | None]:
    """Go back through the inside, from the gradients of its results; u, delta and y are made again unless kept.

    Returns the gradients of the weights, of xz and of the two states.
    """
    dout, dconv_state, dssm_state = above
    dtype, width, rank = xz.dtype, xz.shape[-1] // 2, ops.dt_proj.shape[1]
    x, z = convolved_and_gate(xz, layout.mask)
    u, delta, y = kept
    u = convolve(x, ops, layout, backend) if u is None else u
    made, B, C = select(projected, u.shape, ops, layout.mask, delta is None)
    delta = made if delta is None else delta
    recurrence = (ops.D, z, ops.dt_bias, True)

    y_here = None
    if dout is None:
        dy = torch.zeros_like(u)
    else:
        dout = rows(dout).to(dtype)
        dy = dout.mm(ops.out_proj).view(u.shape)
        if wanted.out_proj and y is None:
            y = y_here = torch.empty_like(u)
    dxz = xz.new_empty(xz.shape)
    dx, dz = dxz[..., :width], dxz[..., width:]
    place = dz if scan.writes_into(backend) else None

    found = scan.run_backward(
        dy, dssm_state, states, u, delta, ops.A, B, C, *recurrence, layout.ssm_state, layout.cu_seqlens, backend,
        dz=place, y=y_here,
    )  # fmt: skip
    du, ddelta, dA, dB, dC, dD, dz_found, ddt_bias = found[:8]
    dssm = found[8] if layout.ssm_state is not None else None
    if place is None:
        dz.copy_(dz_found)
    del dy, delta, found, dz_found, made

    d_out_proj = d_out_bias = None
    if dout is not None:
        d_out_proj = dout.t().mm(rows(cast("Tensor", y))) if wanted.out_proj else None
        d_out_bias = dout.sum(0) if wanted.out_bias else None
    del y, y_here

    if layout.mask is not None:
        ddelta = ddelta.masked_fill_(~layout.mask[..., None], 0)
    ddelta = rows(ddelta)
    d_dt_proj = ddelta.t().mm(projected[:, :rank]) if wanted.dt_proj else None
    dprojected = torch.cat([ddelta.mm(ops.dt_proj), as_real(dB, dtype), as_real(dC, dtype)], dim=1)
    del ddelta
    d_x_proj = dprojected.t().mm(rows(u)) if wanted.x_proj else None
    rows(du).addmm_(dprojected, ops.x_proj)
    del u, dprojected

    taps = (ops.conv_weight, ops.conv_bias)
    _, d_conv_weight, *rest = convolution.run_backward(
        du, x, *taps, "silu", layout.conv_state, layout.cu_seqlens, backend, dx=dx
    )
    d_conv_bias = None if ops.conv_bias is None else rest.pop(0)
    dconv = None if layout.conv_state is None else rest.pop(0)
    if dconv_state is not None:
        dconv = add_gradient_of_last_inputs(dx, dconv, dconv_state, x, layout)
    if layout.mask is not None:
        dx.masked_fill_(~layout.mask[..., None], 0)
    complex_ = ops.A.is_complex()
    dA_log = dA.real * ops.A.real if complex_ else dA * ops.A  # A is its own derivative by A_log
    gradients = (
        d_conv_weight, d_conv_bias, d_x_proj, d_dt_proj, dA_log, dA.imag if complex_ else None, dD, ddt_bias,
        d_out_proj, d_out_bias,
    )  # fmt: skip
    return gradients, dxz, dconv, dssm


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear map of rows."""
    return x.mm(weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def convolved_and_gate(xz: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the input of the convolution, 0 at masked positions, and the gate, each (B, L, D)."""
    x, z = xz.chunk(2, dim=-1)
    return x if mask is None else x.masked_fill(~mask[..., None], 0), z


def convolve(x: Tensor, ops: Operands, layout: Layout, backend: str) -> Tensor:
    """Return u (B, L, D)."""
    state = layout.conv_state
    return convolution.run(x, ops.conv_weight, ops.conv_bias, "silu", state, layout.cu_seqlens, backend)


def select(
    projected: Tensor, shape: torch.Size, ops: Operands, mask: Tensor | None, with_delta: bool = True
) -> tuple[Any, Tensor, Tensor]:
    """Return raw delta (B, L, D), or None, and B and C (B, L, N) from x_proj's output (B L, P); shape is delta's."""
    rank = ops.dt_proj.shape[1]
    n_state = (projected.shape[1] - rank) // 2
    wide = projected.view(shape[0], shape[1], -1)
    B, C = (wide.narrow(-1, start, n_state) for start in (rank, rank + n_state))
    if ops.A.is_complex():
        B, C = (as_complex(p.unflatten(-1, (-1, 2))) for p in (B, C))
    if not with_delta:
        return None, B, C
    delta = projected[:, :rank].mm(ops.dt_proj.t()).view(shape)
    return delta if mask is None else delta.masked_fill_(~mask[..., None], NO_STEP), B, C


def add_gradient_of_last_inputs(
    dx: Tensor, dconv: Tensor | None, dconv_state: Tensor, x: Tensor, layout: Layout
) -> Tensor | None:
    """Add to dx, and to the gradient of the state before, what comes from the convolution's state at the end."""
    n = dconv_state.shape[-1]
    length = x.shape[1]
    if layout.mask is None and layout.cu_seqlens is None:
        inside = min(n, length)
        dx[:, length - inside :] += dconv_state[..., n - inside :].transpose(1, 2)
        if dconv is not None:
            dconv[..., length:] += dconv_state[..., : n - inside]
        return dconv
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        state = None if layout.conv_state is None else layout.conv_state.detach().requires_grad_()
        last = last_inputs(leaf, n + 1, state, layout.mask, layout.cu_seqlens)
    to_x, *to_state = torch.autograd.grad(last, [leaf] if state is None else [leaf, state], dconv_state)
    dx += to_x
    return dconv if dconv is None else dconv + to_state[0]


def as_complex(pairs: Tensor) -> Tensor:
    """Return real numbers (..., 2) as complex ones (...), at least of single precision."""
    # not a view: that needs an even offset in memory, which a part of a projection may not have
    return torch.complex(*at_least_float32(pairs).unbind(-1))


def as_real(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient (B, L, N) of what `as_complex` made as rows of 2 N; a real one as rows of N."""
    x = torch.view_as_real(x.resolve_conj()).flatten(-2).to(dtype) if x.is_complex() else x
    return rows(x)


def rows(x: Tensor) -> Tensor:
    """Return (B, L, D) as a matrix of B L rows, in the same memory where it can be."""
    return x.reshape(-1, x.shape[-1])
