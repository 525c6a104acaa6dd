"""The inside of a selective block, from in_proj's output to out_proj's, with a backward pass of its own.

Autograd would keep what every operator reads: u, delta, y and both halves of in_proj's output, 10 bytes a position and
channel in 16 bits, and states. Here the backward pass makes again what costs little, and the gradients of x and z are
written where in_proj's backward pass reads them, with no copy to bring them together.

    kept         in_proj's and x_proj's outputs, and the states that the scan keeps
    made again   u (about the time of a copy) and delta (a thin matrix product)
    y            made again from the kept states where these lie far apart; kept where they are close, which is where
                 they are few

`normed_projection` does the same for the normalisation and in_proj in front: it keeps the residual stream alone.

Shapes: B batch, L length, D channels of the scan, N state size, R rank of delta, K taps, S packed sequences, P columns
of x_proj's output.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mamba_seq.history import last_inputs
from mamba_seq.kernels._checks import check_boundaries, check_causal_conv1d, check_selective_scan
from mamba_seq.kernels._dispatch import choose
from mamba_seq.kernels._library import is_traced
from mamba_seq.kernels.causal_conv1d import function as convolution
from mamba_seq.kernels.selective_scan import function as scan
from mamba_seq.padding import at_least_float32

Keep = Literal["auto", "autograd", "everything", "little"]
"""What a selective block keeps for its backward pass: what autograd does, operator by operator; with the backward pass
of this file, u, delta and y too, or as little as the head of the file says. "auto" is little on CUDA, else autograd."""

NO_STEP = -1e4
"""A raw delta whose softplus is exactly 0 in float32: the state passes a masked position unchanged."""


class Weights(NamedTuple):
    """The parameters of the inside of a block, as the operators take them."""

    conv_weight: Tensor
    """(D, K)."""
    conv_bias: Tensor | None
    """(D,)."""
    x_proj: Tensor
    """(P, D): delta's factor, B and C of the convolved input; P is R + 2 N, or R + 4 N where A is complex."""
    dt_proj: Tensor
    """(D, R)."""
    A: Tensor
    """(D, N), float32 or complex64."""
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


class Inside(torch.autograd.Function):
    """`inside` with its gradient."""

    @staticmethod
    def forward(ctx: Any, xz: Tensor, *others: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return what `inside` does."""
        weights, layout = Weights(*others[:9]), Layout(*others[9:13])
        return_state, keep = others[13:]
        with torch.autocast(xz.device.type, enabled=False):
            backend = choose("selective_scan", None, xz)
            x, z = convolved_and_gate(xz, layout.mask)
            check_causal_conv1d(x, weights.conv_weight, weights.conv_bias, "silu", layout.conv_state, layout.cu_seqlens)
            if layout.cu_seqlens is not None:
                check_boundaries(layout.cu_seqlens, xz.shape[1])
            u = convolve(x, weights, layout, backend)
            projected = F.linear(u, weights.x_proj.to(u.dtype))
            delta, B, C = select(projected, weights, layout.mask)
            recurrence = (weights.D, z, weights.dt_bias)
            check_selective_scan(u, delta, weights.A, B, C, *recurrence, layout.ssm_state, layout.cu_seqlens)
            y, ssm_state, states = scan.run(
                u, delta, weights.A, B, C, *recurrence, True, layout.ssm_state, layout.cu_seqlens, backend, keep=True
            )
            bias = None if weights.out_bias is None else weights.out_bias.to(u.dtype)
            out = F.linear(y, weights.out_proj.to(u.dtype), bias)
            conv_state = None
            if return_state:
                conv_state = last_inputs(
                    x, weights.conv_weight.shape[1], layout.conv_state, layout.mask, layout.cu_seqlens
                )
        ctx.backend = backend
        y_again = keep != "everything" and scan.can_repeat(u, weights.A, B, C, layout.cu_seqlens, backend)
        kept_y = None if y_again else y
        kept = (u, delta) if keep == "everything" else (None, None)
        ctx.save_for_backward(xz, projected, *kept, kept_y, *weights, *layout, *states)
        ctx.set_materialize_grads(False)
        return out, conv_state, ssm_state

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dconv_state: Tensor | None, dssm_state: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument."""
        xz, projected, u, delta, y, *others = ctx.saved_tensors  # read once: activation checkpointing allows no more
        weights, layout, states = Weights(*others[:9]), Layout(*others[9:13]), others[13:]
        wanted = Weights(*ctx.needs_input_grad[1:10])
        with torch.autocast(xz.device.type, enabled=False):
            gradients, dxz, dconv, dssm = differentiate(
                dout, dconv_state, dssm_state, xz, projected, u, delta, y, states, weights, layout, wanted, ctx.backend
            )
        return dxz, *gradients, None, None, dconv, dssm, None, None


def differentiate(
    dout: Tensor | None,
    dconv_state: Tensor | None,
    dssm_state: Tensor | None,
    xz: Tensor,
    projected: Tensor,
    u: Tensor | None,
    delta: Tensor | None,
    y: Tensor | None,
    states: list[Tensor],
    weights: Weights,
    layout: Layout,
    wanted: Any,
    backend: str,
) -> tuple[list[Tensor | None], Tensor, Tensor | None, Tensor | None]:
    """Go back through the inside; u, delta and y are made again where they are None.

    Returns the gradients of the weights, of xz and of the two states.
    """
    dtype, width, rank = xz.dtype, xz.shape[-1] // 2, weights.dt_proj.shape[1]
    x, z = convolved_and_gate(xz, layout.mask)
    u = convolve(x, weights, layout, backend) if u is None else u
    again, B, C = select(projected, weights, layout.mask, delta is None)
    delta = again if delta is None else delta
    recurrence = (weights.D, z, weights.dt_bias, True)

    d_out_proj = d_out_bias = None
    dy = torch.zeros_like(u) if dout is None else dout.to(dtype) @ weights.out_proj.to(dtype)
    dxz = xz.new_empty(xz.shape)
    dx = dxz[..., :width]
    room = dxz[..., width:] if scan.writes_into(backend) else None
    again = torch.empty_like(u) if y is None and dout is not None and wanted.out_proj else None

    found = scan.run_backward(
        dy,
        dssm_state,
        states,
        u,
        delta,
        weights.A,
        B,
        C,
        *recurrence,
        layout.ssm_state,
        layout.cu_seqlens,
        backend,
        dz=room,
        y=again,
    )
    du, ddelta, dA, dB, dC, dD, dz, ddt_bias = found[:8]
    dssm = found[8] if layout.ssm_state is not None else None
    del dy, delta, found
    if room is None:
        dxz[..., width:] = dz
    del dz
    y = again if y is None else y
    if dout is not None:
        d_out_proj = None if y is None or not wanted.out_proj else rows(dout).t() @ rows(y)
        d_out_bias = rows(dout).sum(0) if wanted.out_bias else None
    del y, again

    if layout.mask is not None:
        ddelta = ddelta.masked_fill_(~layout.mask[..., None], 0)
    d_dt_proj = rows(ddelta).t() @ rows(projected[..., :rank]) if wanted.dt_proj else None
    dprojected = torch.cat([ddelta @ weights.dt_proj.to(dtype), as_real(dB, dtype), as_real(dC, dtype)], dim=-1)
    del ddelta
    d_x_proj = rows(dprojected).t() @ rows(u) if wanted.x_proj else None
    rows(du).addmm_(rows(dprojected), weights.x_proj.to(dtype))
    del u, dprojected

    _, d_conv_weight, *rest = convolution.run_backward(
        du,
        x,
        weights.conv_weight,
        weights.conv_bias,
        "silu",
        layout.conv_state,
        layout.cu_seqlens,
        backend,
        dx=dx,
    )
    d_conv_bias = None if weights.conv_bias is None else rest.pop(0)
    dconv = None if layout.conv_state is None else rest.pop(0)
    if dconv_state is not None:
        dconv = add_gradient_of_last_inputs(dx, dconv, dconv_state, x, layout)
    if layout.mask is not None:
        dx.masked_fill_(~layout.mask[..., None], 0)
    gradients = (d_conv_weight, d_conv_bias, d_x_proj, d_dt_proj, dA, dD, ddt_bias, d_out_proj, d_out_bias)
    typed = [None if g is None or w is None else g.to(w.dtype) for g, w in zip(gradients, weights, strict=True)]
    return typed, dxz, dconv, dssm


def convolved_and_gate(xz: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the input of the convolution, 0 at masked positions, and the gate, each (B, L, D)."""
    x, z = xz.chunk(2, dim=-1)
    return x if mask is None else x.masked_fill(~mask[..., None], 0), z


def convolve(x: Tensor, weights: Weights, layout: Layout, backend: str) -> Tensor:
    """Return u (B, L, D)."""
    state = layout.conv_state
    return convolution.run(x, weights.conv_weight, weights.conv_bias, "silu", state, layout.cu_seqlens, backend)


def select(
    projected: Tensor, weights: Weights, mask: Tensor | None, with_delta: bool = True
) -> tuple[Any, Tensor, Tensor]:
    """Return raw delta (B, L, D), or None, and B and C (B, L, N) from x_proj's output (B, L, P)."""
    rank = weights.dt_proj.shape[1]
    n_state = (projected.shape[-1] - rank) // 2
    low_rank, B, C = projected.split((rank, n_state, n_state), dim=-1)
    if weights.A.is_complex():
        B, C = (as_complex(p.unflatten(-1, (-1, 2))) for p in (B, C))
    if not with_delta:
        return None, B, C
    delta = F.linear(low_rank, weights.dt_proj.to(low_rank.dtype))
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


def normed_projection(residual: Tensor, norm: nn.RMSNorm | nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """Return layer(norm(residual)) (..., features), keeping `residual` (..., d_model) alone for the backward pass.

    The normalisation is computed in its weights' type, the product in that or, under autocast, in autocast's.
    """
    device = residual.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
    bias = getattr(norm, "bias", None)
    out: Tensor = NormedProjection.apply(residual, norm.weight, bias, layer.weight, layer.bias, norm.eps, dtype)
    return out


class NormedProjection(torch.autograd.Function):
    """`normed_projection` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return what `normed_projection` does. A normalisation without bias is RMSNorm."""
        ctx.save_for_backward(residual, norm_weight, norm_bias, weight)
        ctx.eps, ctx.dtype = eps, dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.autocast(residual.device.type, enabled=False):
            hidden = normalise(residual, norm_weight, norm_bias, eps).to(dtype)
            return F.linear(hidden, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of every argument."""
        residual, norm_weight, norm_bias, weight = ctx.saved_tensors
        dtype = ctx.dtype
        with torch.autocast(residual.device.type, enabled=False):
            with torch.enable_grad():
                leaf, gain = residual.detach().requires_grad_(), norm_weight.detach().requires_grad_()
                shift = None if norm_bias is None else norm_bias.detach().requires_grad_()
                normed = normalise(leaf, gain, shift, ctx.eps)
            d_weight = None
            if ctx.needs_input_grad[3]:
                d_weight = (rows(dout).t() @ rows(normed.detach().to(dtype))).to(weight.dtype)
            d_bias = None if ctx.bias_dtype is None else rows(dout).sum(0).to(ctx.bias_dtype)
            dhidden = (dout @ weight.to(dtype)).to(normed.dtype)
            given = [leaf, gain] if shift is None else [leaf, gain, shift]
            d_residual, d_norm_weight, *d_norm_bias = torch.autograd.grad(normed, given, dhidden)
        return d_residual, d_norm_weight, d_norm_bias[0] if d_norm_bias else None, d_weight, d_bias, None, None


def normalise(residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return RMSNorm or, with a bias, LayerNorm of the residual stream, in the weight's type."""
    residual = residual.to(weight.dtype)
    if bias is None:
        return F.rms_norm(residual, weight.shape, weight, eps)
    return F.layer_norm(residual, weight.shape, weight, bias, eps)


def as_complex(pairs: Tensor) -> Tensor:
    """Return real numbers (..., 2) as complex ones (...), at least of single precision."""
    # not a view: that needs an even offset in memory, which a part of a projection may not have
    return torch.complex(*at_least_float32(pairs).unbind(-1))


def as_real(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of what `as_complex` made, (..., N) as (..., 2 N); a real one as it is."""
    return (torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x).to(dtype)


def rows(x: Tensor) -> Tensor:
    """Return (B, L, D) as a matrix of B L rows."""
    return x.reshape(-1, x.shape[-1])
