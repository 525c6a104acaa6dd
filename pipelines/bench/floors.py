"""The least time that this machine could take: bytes over the bandwidth of a copy, exponentials over their rate.

Both are measured: a large copy, bytes read and written, and a loop of exponentials that stays in registers (on a CPU,
in the first-level cache).
"""

import importlib
from typing import NamedTuple

import torch

from mamba_seq.pipelines.bench.timing import time_in_turns


class Floors(NamedTuple):
    """What a device can do at most, measured."""

    device: str
    bytes_s: float
    exps_s: float

    def byte_ms(self, moved: int | None) -> float | None:
        """Return the milliseconds that these bytes take; None where nobody counted."""
        return None if moved is None else moved / self.bytes_s * 1e3

    def exp_ms(self, exps: int | None) -> float | None:
        """Return the milliseconds that these exponentials take."""
        return None if exps is None else exps / self.exps_s * 1e3

    def __str__(self) -> str:
        return f"{self.device}: copy {self.bytes_s / 1e12:.3g} TB/s, {self.exps_s / 1e12:.3g} T exp2/s"


def measure_floors(device: torch.device, quick: bool = False) -> Floors:
    """Measure both floors of a device."""
    size = 2**30 if device.type == "cuda" else 2**26 if quick else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # only here is Triton or Numba loaded
    module = "_floor_cuda" if device.type == "cuda" else "_floor_cpu"
    loop, exps = importlib.import_module(f"mamba_seq.pipelines.bench.{module}").loop_of_exponentials(device)
    loop()
    times = time_in_turns({"copy": lambda: target.copy_(source), "exps": loop}, device, quick)
    return Floors(device_name(device), 2 * size / times["copy"].median * 1e3, exps / times["exps"].median * 1e3)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    from mamba_seq.pipelines.info import cpu_name

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
