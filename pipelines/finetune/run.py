"""A fine-tuning run and its folder.

    RUN/recipe.yaml            every field, as it was run; data and model included
    RUN/splits.tsv             the split of each example
    RUN/metrics.csv            step,name,value
    RUN/checkpoints/last.ckpt  a run that was killed goes on from here
    RUN/checkpoints/best.safetensors   the weights of the best validation
    RUN/model/                 the saved model: card, test metrics, pictures, predictions of the test split

The same command starts a run, continues it, and refuses to touch one that is finished.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from mamba_seq import models_zoo
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.finetune.batches import FinetuneData, choose_batch_size
from mamba_seq.pipelines.finetune.dataset import prepare
from mamba_seq.pipelines.finetune.finish import finish
from mamba_seq.pipelines.finetune.lora import merge_adapters
from mamba_seq.pipelines.finetune.make_model import make_model, model_config
from mamba_seq.pipelines.finetune.module import EarlyStop, FinetuneTraining
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe, read_finetune_recipe
from mamba_seq.pipelines.models import locate_model
from mamba_seq.pipelines.train.callbacks import Checkpoint
from mamba_seq.pipelines.train.folder import CHECKPOINT, begin, check_folder
from mamba_seq.pipelines.train.run import fit
from mamba_seq.saving import read_safetensors

log = logging.getLogger("mamba_seq.finetune")
BEST = "checkpoints/best.safetensors"


def main(
    data: str,
    run: str | Path,
    model: str | None = None,
    from_scratch: str | None = None,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    max_minutes: float | None = None,
    progress: bool = False,
) -> Path:
    """Fine-tune, or go on, and write the saved model.

    Args:
        data: labelled sequences of any form of `mamba_seq.data_prep.labelled`.
        run: folder of the run.
        model: zoo name, folder or hub id of the model that is fine-tuned; None with `from_scratch`.
        from_scratch: name of a zoo recipe, or path of a YAML file.
        overrides: dotted options such as ["--optim.lr", "1e-3"].
        force: throw away what a run of the same folder left.
        max_minutes: stop after so long, with a checkpoint; the same command goes on.
        progress: draw a progress bar on stderr.

    Returns:
        The folder of the saved model; the run's folder when it stopped before its end.

    Raises:
        DataError: For data that cannot be used.
        ModelError: For an unknown model, a finished run, or one that another command began.
        RecipeError: For a recipe that cannot be.
    """
    path = None
    if from_scratch is not None:
        path = Path(from_scratch) if Path(from_scratch).is_file() else models_zoo.recipe_path(from_scratch)
    start_option = [] if model is None else [f"--start={model}"]
    recipe, text = read_finetune_recipe(path, [*start_option, f"--data_path={data}", *overrides])
    run = Path(run)
    check_folder(run, text, force)
    start = None if recipe.start is None else from_pretrained(locate_model(recipe.start))
    dataset = prepare(recipe, None if start is None else start.config)
    for line in dataset.lines:
        log.info("%s", line)
    for warning in dataset.warnings:
        log.warning("%s", warning)
    config = model_config(recipe, dataset, None if start is None else start.config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(recipe.seed, verbose=False)
    network = make_model(recipe, config, start)
    longest = [min(recipe.max_length, len(dataset.inputs[i])) for i in dataset.of("train")]
    batch = recipe.batch_size or choose_batch_size(longest, recipe.batch_tokens)
    batches = FinetuneData(dataset, recipe, batch)
    per_epoch = batches.training.steps_per_epoch
    scheduled = with_steps(recipe, per_epoch)
    begin(run, text, dataset.splits_table(), "data", force)
    log.info("%d sequences a batch, %d steps an epoch, at most %d epochs", batch, per_epoch, recipe.epochs)
    training = FinetuneTraining(network, recipe, dataset, scheduled.optim)
    checkpoint, early = Checkpoint(run / CHECKPOINT), EarlyStop(run / BEST, recipe.patience)
    step = fit(training, batches, scheduled, run, checkpoint, max_minutes, progress, [early])
    if step < scheduled.optim.steps and not early.ended:
        log.info("stopped at step %d of %d; the same command goes on", step, scheduled.optim.steps)
        return run
    network.load_state_dict(read_safetensors(run / BEST))
    merge_adapters(network)
    return finish(network, recipe, dataset, run, step, checkpoint.minutes)


def with_steps(recipe: FinetuneRecipe, per_epoch: int) -> FinetuneRecipe:
    """Return the recipe with steps for its epochs."""
    steps = per_epoch * recipe.epochs
    warmup = min(steps, round(recipe.warmup_fraction * steps))
    optim = dataclasses.replace(
        recipe.optim, steps=steps, warmup_steps=warmup, min_lr=min(recipe.optim.min_lr, recipe.optim.lr)
    )
    return dataclasses.replace(recipe, optim=optim, val_every=min(steps, recipe.val_every * per_epoch))
