"""A training run and its folder.

    RUN/recipe.yaml            every field of the recipe, as it was run
    RUN/splits.tsv             which regions of which genome, or which sound files, were trained on, validated on,
                               tested on
    RUN/metrics.csv            step,name,value
    RUN/checkpoints/last.ckpt  weights, optimiser, step and minutes: a run that was killed goes on from here
                               (in parts, if asked for: see `checkpoint_files`)
    RUN/stages/N/              of a synthetic task whose length grows: see `synthetic_stages`
    RUN/curves.png             loss and accuracy (of a synthetic task by length), or bits per sample or base
    RUN/baseline.json          the baseline on the test data
    RUN/refit.json             the head of a classifier, fitted again, where the recipe says so
    RUN/calibration.json       the calibration of a classifier on validation windows
    RUN/evaluation.json        what the model reaches on them
    RUN/model/                 the saved model with its card: here when everything is done

The same command starts a run, continues it, and refuses to touch one that is finished.
"""

import logging
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar

from mamba_seq import models_zoo
from mamba_seq.errors import ModelError
from mamba_seq.heads import MODELS
from mamba_seq.pipelines.train.audio_job import AudioJob
from mamba_seq.pipelines.train.callbacks import Checkpoint, StopAfter
from mamba_seq.pipelines.train.checkpoint_files import has_checkpoint, whole_checkpoint
from mamba_seq.pipelines.train.dna_job import DnaJob
from mamba_seq.pipelines.train.folder import CHECKPOINT, METRICS, begin, check_folder
from mamba_seq.pipelines.train.job import Job
from mamba_seq.pipelines.train.language_job import LanguageJob
from mamba_seq.pipelines.train.metrics import MetricsFile
from mamba_seq.pipelines.train.module import Training
from mamba_seq.pipelines.train.recipe import (
    AudioRecipe,
    BaseRecipe,
    LanguageRecipe,
    Recipe,
    SyntheticRecipe,
    WordRecipe,
    read_recipe,
)
from mamba_seq.pipelines.train.starting import begin_with, starting_weights
from mamba_seq.pipelines.train.synthetic_job import SyntheticJob
from mamba_seq.pipelines.train.word_job import WordJob

log = logging.getLogger("mamba_seq.train")


def main(
    recipe: str,
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    max_minutes: float | None = None,
    progress: bool = False,
    checkpoint_mib: float | None = None,
) -> Path:
    """Train, or go on training, and write the saved model.

    Args:
        recipe: name of a zoo recipe, or path of a YAML file.
        run: folder of the run.
        overrides: dotted options such as ["--optim.lr", "1e-3"].
        force: throw away what a run of the same folder left.
        max_minutes: stop after so long, with a checkpoint; the same command goes on.
        progress: draw a progress bar on stderr.
        checkpoint_mib: split checkpoints into files of at most so many mebibytes; a run goes on from either form.

    Returns:
        The folder of the saved model; the run's folder when it stopped before its last step.

    Raises:
        ModelError: for an unknown recipe, a finished run, or a run that another recipe began.
        DataError: for data that cannot be read, or are too few for the recipe.
        RecipeError: for a recipe that asks of the data what they cannot give.
    """
    path = Path(recipe) if Path(recipe).is_file() else models_zoo.recipe_path(recipe)
    fields, text = read_recipe(path, overrides)
    run = Path(run)
    check_folder(run, text, force)
    job = make_job(fields)
    job.prepare()
    config = job.model_config()
    start = None if fields.start_from is None else starting_weights(fields.start_from, config)
    begin(run, text, job.splits(), job.what, force)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # says which devices it sees, and advertises
    L.seed_everything(fields.seed, verbose=False)
    model = MODELS[config.task](config)
    log.info("%s: %s parameters", fields.name, f"{sum(p.numel() for p in model.parameters()):,}")
    if start is not None:
        new = begin_with(model, start)
        log.info("started from %s; new: %s", fields.start_from, ", ".join(new) or "nothing")
    else:
        job.draw(model)
    part_bytes = None if checkpoint_mib is None else max(1, int(checkpoint_mib * 2**20))
    began = time.monotonic()
    if not job.grow(model, run, fit, part_bytes, max_minutes, progress):
        log.info("stopped in a first stage; the same command goes on")
        return run
    if max_minutes is not None:
        max_minutes = max(0.0, max_minutes - (time.monotonic() - began) / 60)
    checkpoint = Checkpoint(run / CHECKPOINT, part_bytes)
    training = job.training(model)
    step = fit(training, job.data, fields, run, checkpoint, max_minutes, progress)
    minutes = checkpoint.minutes
    job.draw_curves(run)
    planned = fields.optim.minutes
    if not training.done and step < fields.optim.steps and (planned is None or minutes < planned):
        end = f"of {fields.optim.steps}" if planned is None else f"after {minutes:.1f} of {planned:g} minutes"
        log.info("stopped at step %d %s; the same command goes on", step, end)
        return run
    return job.finish(training.model, run, step, minutes)


def make_job(recipe: BaseRecipe) -> Job:
    """Return the job of a recipe."""
    if isinstance(recipe, AudioRecipe):
        return AudioJob(recipe)
    if isinstance(recipe, WordRecipe):
        return WordJob(recipe)
    if isinstance(recipe, LanguageRecipe):
        return LanguageJob(recipe)
    if isinstance(recipe, SyntheticRecipe):
        return SyntheticJob(recipe)
    assert isinstance(recipe, Recipe)
    return DnaJob(recipe)


def fit(
    training: Training,
    data: Any,
    recipe: BaseRecipe,
    run: Path,
    checkpoint: Checkpoint,
    max_minutes: float | None,
    progress: bool,
    more: Sequence[Callback] = (),
) -> int:
    """Train from the last checkpoint, if there is one; return how many steps are done in all."""
    if not has_checkpoint(checkpoint.path):
        return fit_from(None, training, data, recipe, run, checkpoint, max_minutes, progress, more)
    with whole_checkpoint(checkpoint.path) as resume:
        return fit_from(resume, training, data, recipe, run, checkpoint, max_minutes, progress, more)


def fit_from(
    resume: Path | None,
    training: Training,
    data: Any,
    recipe: BaseRecipe,
    run: Path,
    checkpoint: Checkpoint,
    max_minutes: float | None,
    progress: bool,
    more: Sequence[Callback] = (),
) -> int:
    """Do what `fit` does, from the checkpoint in a file.

    The checkpoint keeps the state of `more` callbacks, which are called before it is written.
    """
    gpu = torch.cuda.is_available()
    mixed = recipe.precision == "bf16" or (recipe.precision == "auto" and gpu)
    start = 0 if resume is None else resumed_step(resume, checkpoint.path)
    data.start_step = start
    if start:
        log.info("goes on after step %d", start)
    callbacks: list[Callback] = [*more, checkpoint]
    training.minutes = lambda: checkpoint.minutes
    if max_minutes is not None:
        callbacks.append(StopAfter(max_minutes))
    if recipe.optim.minutes is not None:
        callbacks.append(StopAfter(recipe.optim.minutes, training.minutes))
    if progress:
        callbacks.append(RichProgressBar())
    metrics = MetricsFile(run / METRICS, start)
    trainer = L.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=-1,
        max_steps=recipe.optim.steps,
        val_check_interval=recipe.val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=metrics,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=run,
    )
    metrics.trainer = trainer
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        # windows are made fast enough without worker processes
        warnings.filterwarnings("ignore", ".* does not have many workers")
        try:
            trainer.fit(training, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=True)
        except SystemExit:
            if not trainer.interrupted:
                raise
            # Lightning makes of Ctrl-C an exit with 1, and leaves the process deaf to the next
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
    checkpoint.save(trainer)
    return trainer.global_step


def resumed_step(file: Path, checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint has behind it.

    Args:
        file: that holds it.
        checkpoint: what it is called, for messages.

    Raises:
        ModelError: when it cannot be read.
    """
    try:
        step: int = torch.load(file, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # torch names no type for what may be wrong with a file
        raise ModelError(
            f"{checkpoint} cannot be read as a checkpoint: {(str(error).splitlines() or [repr(error)])[0]}; "
            "put a copy of it back, or say --force to begin anew"
        ) from error
    return step
