"""First stages of a synthetic task, at shorter lengths: a long task is found where it is short, and then grown.

    RUN/stages/1/metrics.csv             of this stage alone
    RUN/stages/1/checkpoints/last.ckpt   a stage that was killed goes on from here
    RUN/stages/1/weights.safetensors     what it ended with: the next stage, or the run, begins from them
    RUN/stages/1/outcome.json            length, steps, minutes and last accuracy: here when the stage is done

Every stage is a run of its own, with a fresh optimiser and schedule, and its samples are others than those of the next:
a sample is a function of its length, too.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mamba_seq.heads import LanguageModel
from mamba_seq.pipelines.train.callbacks import Checkpoint
from mamba_seq.pipelines.train.folder import CHECKPOINT, METRICS, STAGES
from mamba_seq.pipelines.train.metrics import read_metrics
from mamba_seq.pipelines.train.synthetic_module import SyntheticData, SyntheticTraining
from mamba_seq.pipelines.train.synthetic_recipe import SyntheticRecipe
from mamba_seq.saving import read_safetensors, write_whole

log = logging.getLogger("mamba_seq.train")
WEIGHTS, OUTCOME = "weights.safetensors", "outcome.json"


def grow(
    recipe: SyntheticRecipe,
    model: LanguageModel,
    run: Path,
    fit: Callable[..., int],
    part_bytes: int | None = None,
    max_minutes: float | None = None,
    progress: bool = False,
) -> bool:
    """Train the stages that are not done yet, and leave the weights of the last of them in the model.

    Args:
        recipe: of the run.
        model: its model, in the weights that it starts with.
        run: its folder.
        fit: `mamba_seq.pipelines.train.run.fit`.
        part_bytes: split checkpoints into files of at most so many bytes.
        max_minutes: stop after so long.
        progress: draw a progress bar.

    Returns:
        Whether all stages are done: False when the time was up before.
    """
    began = time.monotonic()
    for number in range(len(recipe.stages)):
        folder, stage = run / STAGES / str(number + 1), recipe.stage(number)
        if (folder / OUTCOME).is_file():
            model.load_state_dict(read_safetensors(folder / WEIGHTS))
            continue
        left = None if max_minutes is None else max_minutes - (time.monotonic() - began) / 60
        if left is not None and left <= 0:
            return False
        log.info("stage %d of %d: length %s", number + 1, len(recipe.stages), f"{stage.data.length:,}")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint(folder / CHECKPOINT, part_bytes)
        training = SyntheticTraining(model, stage)
        data = SyntheticData(stage.data.batch_size, stage.validation)
        steps = fit(training, data, stage, folder, checkpoint, left, progress)
        model.zero_grad(set_to_none=True)
        if steps < stage.optim.steps and not training.done:
            return False
        _keep(model, folder, stage, steps, checkpoint.minutes)
    return True


def outcomes(recipe: SyntheticRecipe, run: Path) -> list[dict[str, Any]]:
    """Return length, steps, minutes and accuracy of every stage that a run has behind it."""
    files = [run / STAGES / str(number + 1) / OUTCOME for number in range(len(recipe.stages))]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _keep(model: LanguageModel, folder: Path, stage: SyntheticRecipe, steps: int, minutes: float) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / WEIGHTS, save(tensors))
    name = f"val_{stage.data.length}_accuracy"
    accuracy = [value for _, each, value in read_metrics(folder / METRICS) if each == name][-1]
    outcome = {
        "length": stage.data.length,
        "steps": steps,
        "planned_steps": stage.optim.steps,
        "minutes": minutes,
        "accuracy": accuracy,
    }
    log.info("length %s: accuracy %.4f after %d steps", f"{stage.data.length:,}", accuracy, steps)
    write_whole(folder / OUTCOME, (json.dumps(outcome) + "\n").encode())
