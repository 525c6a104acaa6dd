"""What is installed, what there is to compute on, and which scan would run."""

import importlib.metadata
import platform
from collections.abc import Iterator

import torch

from mamba_seq import __version__, models_zoo
from mamba_seq.kernels._dispatch import BACKENDS, choose_backend
from mamba_seq.pipelines.runtime import cores

PACKAGES = ("torch", "triton", "numba", "numpy", "lightning", "safetensors", "huggingface_hub")


def describe(device: torch.device) -> Iterator[tuple[str, str]]:
    """Yield lines of a report as pairs (name, value), for runs on `device`."""
    yield "mamba-seq", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, _version(package)
    yield "CPU", f"{cpu_name()}, {cores()} cores"
    yield "threads", f"{torch.get_num_threads()} (torch)"
    yield from _gpus()
    yield "device", str(device)
    yield from _scans(device)
    yield "zoo", ", ".join(models_zoo.names()) or "no model"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> Iterator[tuple[str, str]]:
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no CUDA device or driver"
        yield "GPU", f"none: {why}"
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{card.name}, {card.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"


def _scans(device: torch.device) -> Iterator[tuple[str, str]]:
    chosen = choose_backend("selective_scan", None, device, {})
    yield "scan", f"{chosen}, the one for {device.type} tensors"
    for backend in BACKENDS:
        if backend == chosen:
            continue
        try:
            choose_backend("selective_scan", backend, device, {})
        except RuntimeError as reason:
            yield f"scan {backend}", str(reason).partition("call: ")[2] or str(reason)
        else:
            yield f"scan {backend}", "can run"


def cpu_name() -> str:
    """Return the name of the processor, as well as this system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
