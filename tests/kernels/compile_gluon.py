"""Compile the Gluon kernels with the launch settings of an architecture, for a GPU that is not here; prints JSON.

python compile_gluon.py sm [sm ...]: a list of [sm, launch, kernel, bytes of shared memory, 16-byte loads, warps].
"""

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from mamba_seq.kernels.selective_scan import _gluon_backward, _gluon_forward, gluon
from mamba_seq.kernels.selective_scan._gluon_tiles import SIZES
from mamba_seq.kernels.selective_scan.settings import Launch, look_up

N = 16
STRIDES = ("_batch", "_row", "_group", "channels", "width")
ACTIVATIONS = {"u", "delta", "B", "C", "z", "y", "dy", "du", "ddelta", "dz"}


def compiled(kernel: Any, launch: Launch, sm: int, **switches: bool) -> tuple[int, int]:
    """Compile a kernel for bfloat16, every switch on: bytes of shared memory of a program, and its widest loads."""
    names = kernel.arg_names
    given = {
        **{"N": N, "SD": launch.SD, "SN": launch.SN, "BLOCK_D": gluon.block_of(launch, N), "T": gluon.TILE},
        **{"SOFTPLUS": True, "HAS_Z": True, "STEPS": launch.steps, "num_warps": launch.warps, **switches},
    }
    signature = {name: "constexpr" if name in given else kind_of(name) for name in names}
    constants = {(names.index(name),): value for name, value in given.items()}
    aligned = [name for name in names if signature[name][0] == "*" or name.endswith(STRIDES)]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = GluonASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "maxnreg": launch.registers}
    binary = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    return binary.metadata.shared, len(re.findall(r"ld\.global[.\w]*\.v4", binary.asm["ptx"]))


def kind_of(name: str) -> str:
    """Return the type of an argument: strides and sizes are integers, all else points to numbers."""
    if name in SIZES or name.endswith(STRIDES):
        return "i32"
    return "*bf16" if name in ACTIVATIONS else "*fp32"


def main(architectures: list[int]) -> None:
    """Compile for each architecture what its settings launch."""
    found = []
    for sm in architectures:
        settings = look_up(divmod(sm, 10))
        for name in ("wide", "narrow", "middle", "gradients", "gradients_narrow"):
            launch = getattr(settings, name)
            if name.startswith("gradients"):
                kernels = {"gradients": (_gluon_backward.gradients, {})}
            else:
                kernels = {"outputs": (_gluon_forward.scan_chunks, {"OUTPUTS": True, "KEEP": True})}
            if name == "wide":
                kernels["summaries"] = (_gluon_forward.scan_chunks, {"OUTPUTS": False, "KEEP": False})
                kernels["adjoints"] = (_gluon_backward.adjoint_chunks, {})
            for label, (kernel, switches) in kernels.items():
                found.append([sm, name, label, *compiled(kernel, launch, sm, **switches), launch.warps])
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(sm) for sm in sys.argv[1:]])
