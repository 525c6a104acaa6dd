"""Whether a training step fits into memory, found out before the run, and what to do where it does not."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mamba_seq.backbone import Recompute
from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.heads import MODELS
from mamba_seq.memory import Step, training_bytes
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.recipe_fields import DnaRecipe

log = logging.getLogger("mamba_seq.train")

USABLE = 0.92
"""Part of the free memory that is counted on: allocators leave holes."""
FULL = 1 << 18
"""Tokens of a part that fill a device."""


class MemoryPlan(NamedTuple):
    """How a step goes through the model."""

    recompute: Recompute
    micro_batch_tokens: int
    """Most tokens that go through the model at once."""
    bytes: int
    """What that takes."""


def plan_memory(
    config: ModelConfig, recipe: DnaRecipe, lengths: Sequence[int], batch_tokens: int, may_split: bool
) -> MemoryPlan:
    """Choose what the backward pass computes again so that a step fits, the fastest way that does.

    Args:
        config: of the model.
        recipe: what is asked for; its "auto" is chosen here.
        lengths: of the windows of a step.
        batch_tokens: tokens of a step.
        may_split: whether a step may go through the model in parts whose gradients are summed.

    Raises:
        RecipeError: when nothing fits, with the windows or batch that would.
    """
    assert isinstance(config.backbone, MambaConfig)
    backbone: MambaConfig = config.backbone
    with torch.random.fork_rng(devices=[]):
        parameters = sum(p.numel() for p in MODELS[config.task](config).parameters())
    gpu = torch.cuda.is_available()
    mixed = recipe.precision == "bf16" or (recipe.precision == "auto" and gpu)
    free = int(recipe.memory_gb * 1e9) if recipe.memory_gb is not None else int(USABLE * free_memory())

    def needed(recompute: Recompute, tokens: int, of: Sequence[int] = lengths) -> int:
        shapes = [(max(1, tokens // length) * (2 if config.complement else 1), length) for length in of]
        every = int(recipe.gradient_checkpointing)
        steps = [
            Step(batch=b, length=n, parameters=parameters, mixed=mixed, gpu=gpu, checkpoint_every=every)
            for b, n in shapes
        ]
        return max(training_bytes(backbone, step, recompute) for step in steps)

    ways: list[Recompute] = ["auto", "segments"] if recipe.recompute == "auto" else [recipe.recompute]
    for way in ways:
        # parts that fill the device are quicker than to compute more of it again
        least = max(max(lengths), min(batch_tokens, FULL if way != ways[-1] else 1))
        tokens = batch_tokens
        while (found := needed(way, tokens)) > free and may_split and tokens > least:
            tokens = max(least, tokens // 2)
        if found <= free:
            log.info(
                "a step takes about %.2f GB of %.2f: %s bases at once, recompute %s",
                found / 1e9,
                free / 1e9,
                f"{tokens:,}",
                way,
            )
            return MemoryPlan(way, tokens, found)
    last = ways[-1]
    longest = _largest(lambda length: needed(last, length, [length]) <= free, max(lengths))
    most = _largest(lambda n: needed(last, n) <= free, batch_tokens)
    advice = f"a batch of {most:,} bases fits" if most >= max(lengths) else f"one window of {longest:,} bases fits"
    if longest < 1:
        advice = "not even one base fits: take a smaller model"
    raise RecipeError(
        f"a step of {tokens:,} bases in windows of up to {max(lengths):,} takes about "
        f"{needed(last, tokens) / 1e9:.2f} GB with recompute {last!r}, and {free / 1e9:.2f} GB can be used; {advice} "
        "(lengths and batch_tokens in the recipe's data section; memory_gb says what can be used)"
    )


def free_memory() -> int:
    """Return the bytes that a run may still take: of the first GPU, or of main memory within its control group."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(0)[0])
    free = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        if limit.strip().isdecimal():
            free = min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError, IndexError):
        pass  # no such files: another system, or no control groups
    return free


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest power of two up to `most` that fits, 0 for none."""
    size = 1 << max(0, most.bit_length() - 1)
    while size and not fits(size):
        size //= 2
    return size
