"""The launches of a step through a stack of blocks, prepared once for weights and states that stay where they are.

`_triton_kernels.py` says how a step is computed. Where all programs fit the GPU at once, a stack is one launch; else,
and in Triton's interpreter, each block is two (`enter` and `leave`), or three of tiles.

Shapes: B batch, M width of the stream.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_seq.kernels._dispatch import multiprocessor_count, triton_interpreted
from mamba_seq.kernels.block_step import _triton_kernels, _triton_rows, _triton_tiles
from mamba_seq.kernels.block_step.reference import BlockWeights, FinalNorm

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
ALIGNED = 16  # bytes
LARGEST_TILE = 32768  # elements of the input projection that a program holds
TILES = (4096, 8192, 16384)  # likewise, the faster first; the last is for 64 channels at most, and 16-bit weights
LARGEST_ALONE = 8192  # of a program that has a sequence to itself
MOST_ALONE = 1024 * 8192  # of all such programs: more take turns, and products over all sequences win
FEWEST_CHANNELS = 16
FEWEST_ROWS = 16  # of a tile
WIDEST_OF_ROWS = 256


class Launch(NamedTuple):
    """How a step of one sequence is spread over programs."""

    channels: int
    """Channels of the scan a program, a power of two."""
    warps: int
    resident: bool
    """One launch a stack, whose programs wait for each other; otherwise two a block, or three of tiles."""
    rows: int = 1
    """Sequences a group of programs; tiles of several are multiplied as such, and are at least 16."""


def fastest_launch(M: int, D: int, batch: int, device: torch.device, dtype: torch.dtype) -> Launch | None:
    """Return the settings for a width, a number of channels and of sequences; None where separate operators are faster.

    Measured at widths 64 and 256 in bfloat16 on an H200 (docs/log.md). A narrow block is a program, with nothing to
    wait for. Of wide ones a program takes as little as lets all find a place at once, the fewer programs read the
    matrices, the more sequences there are; from there on, some sequences share a group of programs in tiles.
    """
    width, wide = triton.next_power_of_2(M), dtype.itemsize > 2
    places = 0 if triton_interpreted() else multiprocessor_count(device)
    if batch == 0 or width * FEWEST_CHANNELS > LARGEST_TILE:
        return None
    alone = width * triton.next_power_of_2(D)
    if alone <= LARGEST_ALONE:
        return Launch(triton.next_power_of_2(D), 8 if wide else 4, True) if batch * alone <= MOST_ALONE else None
    for tile in TILES[: 3 if width >= TILES[2] // 64 and not wide else 2]:
        channels = max(FEWEST_CHANNELS, tile // width)
        if triton.cdiv(D, channels) * batch <= places:
            return Launch(channels, 4 if channels * width <= TILES[0] and not wide else 8, True)
    groups = triton.cdiv(batch, FEWEST_ROWS)
    if not wide and width <= WIDEST_OF_ROWS and triton.cdiv(D, FEWEST_CHANNELS) * groups <= places:
        return Launch(FEWEST_CHANNELS, 4, True, FEWEST_ROWS)
    return None


def batch_invariant_launch(M: int, D: int, batch: int, device: torch.device) -> Launch | None:
    """Return settings with which a sequence's results do not depend on how many there are; None where there are none.

    Narrow blocks are a program a sequence, wide ones tiles of FEWEST_ROWS sequences: in one launch while all programs
    find a place, in three a block beyond, of the same tiles.
    """
    width = triton.next_power_of_2(M)
    if width * triton.next_power_of_2(D) <= LARGEST_ALONE:
        return Launch(triton.next_power_of_2(D), 4, True)
    if width > WIDEST_OF_ROWS:
        return None
    places = 0 if triton_interpreted() else multiprocessor_count(device)
    fits = triton.cdiv(D, FEWEST_CHANNELS) * triton.cdiv(batch, FEWEST_ROWS) <= places
    return Launch(FEWEST_CHANNELS, 4, fits, FEWEST_ROWS)


def choose_launch(M: int, D: int, batch: int, device: torch.device, dtype: torch.dtype) -> Launch:
    """Return the fastest settings, or some that run anywhere."""
    channels = min(triton.next_power_of_2(D), max(FEWEST_CHANNELS, 8192 // triton.next_power_of_2(M)))
    return fastest_launch(M, D, batch, device, dtype) or Launch(channels, 8, channels >= D)


def pays(M: int, D: int, batch: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a step is faster here than in separate operators."""
    return fastest_launch(M, D, batch, device, dtype) is not None


def why_not(blocks: Sequence[BlockWeights], states: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> str | None:
    """Give the reason that the kernels do not run a stack of blocks, or None."""
    first = blocks[0]
    M = first.out_weight.shape[0]
    N = first.A_log.shape[1]
    if like.dtype == torch.float64 or first.in_weight.dtype == torch.float64:
        return "float64 runs on the reference only"
    if triton.next_power_of_2(M) * FEWEST_CHANNELS > LARGEST_TILE:
        return f"blocks of width {M} are not small: the widest has {LARGEST_TILE // FEWEST_CHANNELS}"
    if N > 256 or first.dt_weight.shape[1] > 256:
        return "the state or the rank of delta is larger than 256"
    pattern = [t is None for t in first]
    for block, (conv_state, ssm_state) in zip(blocks, states, strict=True):
        if any(
            (a is None) != gone or (a is not None and b is not None and (a.shape != b.shape or a.dtype != b.dtype))
            for a, b, gone in zip(block, first, pattern, strict=True)
        ):
            return "the blocks are not of one shape and type"
        if conv_state.stride() != states[0][0].stride() or ssm_state.stride() != states[0][1].stride():
            return "the states of the blocks do not lie in memory in one way"
        if conv_state.dtype != states[0][0].dtype:
            return "the states of the blocks are of several types"
        for name, weight in zip(BlockWeights._fields, block, strict=True):
            if weight is None:
                continue
            if not weight.is_contiguous() or weight.data_ptr() % ALIGNED:
                return f"{name} is not contiguous from a multiple of {ALIGNED} bytes on"
            if name not in ("dt_bias", "A_log", "D") and weight.dtype != first.in_weight.dtype:
                return f"{name} has not the type of in_weight"
    return None


def addresses(blocks: Sequence[BlockWeights], states: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, ...]:
    """Return where weights and states of all blocks lie, in the order of the kernels' table; 0 for what is not."""
    found: list[int] = []
    for block, state in zip(blocks, states, strict=True):
        found += [0 if t is None else t.data_ptr() for t in (*block, *state)]
        found.append(0)
    return tuple(found)


def key_of(
    like: Tensor,
    states: Sequence[tuple[Tensor, Tensor]],
    blocks: Sequence[BlockWeights],
    norm: str,
    eps: float,
    final_norm: FinalNorm | None,
) -> tuple[Any, ...]:
    """Return what a prepared step depends on; weights of other values at the same addresses are no other weights."""
    conv_state, ssm_state = states[0]
    final = () if final_norm is None else (*(t if t is None else t.data_ptr() for t in final_norm[:2]), final_norm.eps)
    kinds = (like.dtype, like.shape, conv_state.dtype, conv_state.stride(), ssm_state.stride(), norm, eps, final)
    shapes = tuple(None if t is None else (t.dtype, t.shape) for t in blocks[0])
    return *kinds, shapes, addresses(blocks, states)


class Prepared:
    """A step of a stack of blocks, for weights and states at fixed addresses.

    It holds no reference to them: the caller does, and compares `key` with `key_of` what it has where they may have
    moved.
    """

    def __init__(
        self,
        like: Tensor,
        states: Sequence[tuple[Tensor, Tensor]],
        blocks: Sequence[BlockWeights],
        norm: str,
        eps: float,
        final_norm: FinalNorm | None,
        launch: Launch | None = None,
    ) -> None:
        first = blocks[0]
        batch, M = like.shape
        D, N = first.A_log.shape
        R, K = first.dt_weight.shape[1], first.conv_weight.shape[1]
        self.launch = launch or choose_launch(M, D, batch, like.device, first.in_weight.dtype)
        self.key = key_of(like, states, blocks, norm, eps, final_norm)
        parts = triton.cdiv(D, self.launch.channels)
        padded = {
            "M_PADDED": triton.next_power_of_2(M),
            "N_PADDED": triton.next_power_of_2(N),
            "R_PADDED": triton.next_power_of_2(R),
        }
        self.layers, self.batch, self.parts = len(blocks), batch, parts
        self.eps, self.final_norm = eps, final_norm
        self.out_dtype = like.dtype if final_norm is None else final_norm.weight.dtype
        device = like.device
        self.table = torch.tensor(self.key[-1], dtype=torch.int64).to(device)
        row = 2 * (padded["R_PADDED"] + padded["N_PADDED"])
        self.projected = torch.empty(batch * parts * row, dtype=torch.float32, device=device)
        self.added = torch.empty(batch * parts * padded["M_PADDED"], dtype=torch.float32, device=device)
        self.counters = torch.zeros(2 * batch, dtype=torch.int32, device=device)
        self.conv_strides, self.ssm_strides = states[0][0].stride(), states[0][1].stride()
        self.sizes = {"M": M, "D": D, "N": N, "R": R}
        self.cut = {**padded, "PARTS": parts, "PARTS_PADDED": triton.next_power_of_2(parts)}
        self.types = {"W": TYPES[first.in_weight.dtype]}
        self.stream_type = {"STREAM": TYPES[like.dtype]}
        self.entry = {
            "K": K,
            "CONV": TYPES[states[0][0].dtype],
            "NORM_HAS_BIAS": first.norm_bias is not None,
            "HAS_CONV_BIAS": first.conv_bias is not None,
        }
        self.taps = {"K_PADDED": triton.next_power_of_2(K)}
        self.kind = {"LAYER_NORM": norm == "layer"}
        self.bias = {"PROJ_BIAS": first.in_bias is not None}
        self.final = {
            "FINAL": final_norm is not None,
            "FINAL_HAS_BIAS": final_norm is not None and final_norm.bias is not None,
        }
        self.block = {"BLOCK_D": self.launch.channels}

    def __call__(
        self, residual: Tensor, more: Tensor | None = None, streams: Tensor | None = None, more_layer: int | None = None
    ) -> Tensor:
        """Advance the blocks by one position of the residual stream (B, M), changing their states in place.

        Args:
            residual: the stream.
            more: added to it behind each block (layers, B, M) float32, dense but for the first axis. Neither this nor
                `streams` is for launches of two kernels a block.
            streams: the stream behind each block, written, likewise; None does not keep it.
            more_layer: elements from what is added behind a block to what is behind the next, which may be negative,
                `more` being (B, M) of the first; None goes by the strides of `more`.
        """
        out = torch.empty((self.batch, self.sizes["M"]), dtype=self.out_dtype, device=residual.device)
        weight, bias, final_eps = self.final_norm or (None, None, 0.0)
        step = 0 if more is None else more.stride(0) if more_layer is None else more_layer
        extra = (more, step, streams, 0 if streams is None else streams.stride(0))
        with torch.cuda.device_of(residual):
            if self.launch.rows > 1:
                self._in_tiles(out, residual, weight, bias, final_eps, extra)
            elif self.launch.resident:
                _triton_kernels.stack[(self.batch * self.parts,)](
                    out, residual, self.table, self.projected, self.added, self.counters, weight, bias,
                    *residual.stride(), *self.conv_strides, *self.ssm_strides, self.eps, final_eps, *extra,
                    LAYERS=self.layers, **self.sizes, **self.cut, **self.block, **self.types, **self.stream_type,
                    **self.entry, **self.taps, **self.kind, **self.bias, **self.final, num_warps=self.launch.warps,
                    launch_cooperative_grid=self.parts > 1,
                )  # fmt: skip
            else:
                assert more is None
                assert streams is None
                self._in_halves(out, residual, weight, bias, final_eps)
        return out

    def _in_halves(
        self, out: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, final_eps: float
    ) -> None:
        """Launch two kernels a block; what stays in registers otherwise goes through memory."""
        M, D = self.sizes["M"], self.sizes["D"]
        stream = torch.empty((2, self.batch, M), dtype=torch.float32, device=residual.device)
        stream[0] = residual
        held = torch.empty((self.batch, 2, D), dtype=torch.float32, device=residual.device)
        grid, warps = (self.batch * self.parts,), self.launch.warps
        for layer in range(self.layers):
            _triton_kernels.enter[grid](
                stream, self.table, held, self.projected, self.added, layer, self.batch, *self.conv_strides, self.eps,
                **self.sizes, **self.cut, **self.block, **self.types, **self.stream_type, **self.entry, **self.taps,
                **self.kind, **self.bias, num_warps=warps,
            )  # fmt: skip
            _triton_kernels.leave[grid](
                self.table, held, self.projected, self.added, layer, *self.ssm_strides,
                **self.sizes, **self.cut, **self.block, **self.types, num_warps=warps,
            )  # fmt: skip
        _triton_kernels.end[(self.batch,)](
            out, stream, self.table, self.added, weight, bias, self.layers, self.batch, final_eps, M=M,
            M_PADDED=self.cut["M_PADDED"], PARTS=self.parts, PARTS_PADDED=self.cut["PARTS_PADDED"],
            **self.types, **self.stream_type, **self.kind, **self.bias, **self.final, num_warps=warps,
        )  # fmt: skip

    def _in_tiles(
        self,
        out: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        final_eps: float,
        extra: tuple[Any, ...],
    ) -> None:
        """Launch a kernel a stack, or three a block, of groups of programs that serve several sequences each."""
        M, D = self.sizes["M"], self.sizes["D"]
        rows, warps = self.launch.rows, self.launch.warps
        stream = torch.empty((self.batch, M), dtype=torch.float32, device=residual.device)
        stream.copy_(residual)
        inner, gates = torch.empty((2, self.batch, D), dtype=torch.float32, device=residual.device)
        smallest = FEWEST_ROWS
        group = {"PARTS": self.parts, "ROWS": rows}
        width = max(smallest, triton.next_power_of_2(triton.cdiv(M, self.parts)))
        state = {
            "N_PADDED": max(smallest, self.cut["N_PADDED"]),
            "R_PADDED": max(smallest, self.cut["R_PADDED"]),
            "CHUNK": min(64, max(smallest, triton.next_power_of_2(D))),
        }
        padded = {"M_PADDED": max(smallest, self.cut["M_PADDED"])}
        precision = {"PRECISION": "tf32x3"}
        enter = {"M": M, "D": D, **padded, **group, **self.block, **self.types, **self.entry, **self.kind, **self.bias}
        middle = {**self.sizes, **state, **group, **self.block, **self.types, **precision}
        del middle["M"]
        leave = {"M": M, "D": D, **group, "BLOCK_M": width, "CHUNK": state["CHUNK"], **self.types, **self.stream_type}
        leave |= {**self.bias, **precision}
        grid = (triton.cdiv(self.batch, rows) * self.parts,)
        if self.launch.resident:
            _triton_tiles.stack[grid](
                stream, self.table, inner, gates, self.counters, self.batch, *self.conv_strides, *self.ssm_strides,
                self.eps, *extra, LAYERS=self.layers, **(enter | middle | leave), num_warps=warps,
                launch_cooperative_grid=True,
            )  # fmt: skip
        else:
            for layer in range(self.layers):
                _triton_tiles.enter[grid](
                    stream, self.table, inner, gates, layer, self.batch, *self.conv_strides, self.eps,
                    **enter, **precision, num_warps=warps,
                )  # fmt: skip
                _triton_tiles.middle[grid](
                    self.table, inner, gates, layer, self.batch, *self.ssm_strides, **middle, num_warps=warps
                )
                _triton_tiles.leave[grid](
                    stream, self.table, gates, layer, self.batch, *extra, **leave, num_warps=warps
                )
        # nothing is left to add: no layer is named
        _triton_kernels.end[(self.batch,)](
            out, stream, self.table, self.added, weight, bias, 0, self.batch, final_eps, M=M,
            M_PADDED=self.cut["M_PADDED"], PARTS=self.parts, PARTS_PADDED=self.cut["PARTS_PADDED"],
            **self.types, **self.stream_type, **self.kind, **self.bias, **self.final, num_warps=4,
        )  # fmt: skip


def map_rows(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Write weight x + bias into `out`, for x (B, width); float32 and dense. A row does not depend on the others."""
    outputs, K = weight.shape
    block = 32
    grid = (triton.cdiv(len(x), FEWEST_ROWS), triton.cdiv(outputs, block))
    with torch.cuda.device_of(x):
        _triton_rows.map_rows[grid](
            out, x, weight, bias, len(x), K=K, OUTPUTS=outputs, ROWS=FEWEST_ROWS, BLOCK=block,
            CHUNK=min(128, max(16, triton.next_power_of_2(K))), W=TYPES[weight.dtype], PRECISION="tf32x3", num_warps=4,
        )  # fmt: skip
