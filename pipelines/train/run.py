"""A training run and its folder.

    RUN/recipe.yaml            every field of the recipe, as it was run
    RUN/splits.tsv             which regions of which genome were trained on, validated on, tested on
    RUN/metrics.csv            step,name,value
    RUN/checkpoints/last.ckpt  weights, optimiser and step: a run that was killed goes on from here
    RUN/curves.png             loss and accuracy
    RUN/baseline.json          the k-mer baseline on the test windows
    RUN/evaluation.json        what the model reaches on them
    RUN/model/                 the saved model with its card: here when everything is done

The same command starts a run, continues it, and refuses to touch one that is finished.
"""

import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar

from mamba_seq import models_zoo
from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.dna import GenomeData
from mamba_seq.data_prep.splits import Splits
from mamba_seq.errors import ModelError
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.train.finish import finish
from mamba_seq.pipelines.train.metrics import MetricsFile
from mamba_seq.pipelines.train.module import ClassifierTraining
from mamba_seq.pipelines.train.plots import plot_curves
from mamba_seq.pipelines.train.recipe import Recipe, read_recipe

log = logging.getLogger("mamba_seq.train")


def main(
    recipe: str,
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    max_minutes: float | None = None,
    progress: bool = False,
) -> Path:
    """Train, or go on training, and write the saved model.

    Args:
        recipe: name of a zoo recipe, or path of a YAML file.
        run: folder of the run.
        overrides: dotted options such as ["--optim.lr", "1e-3"].
        force: throw away what a run of the same folder left.
        max_minutes: stop after so long, with a checkpoint; the same command goes on.
        progress: draw a progress bar on stderr.

    Returns:
        The folder of the saved model; the run's folder when it stopped before its last step.

    Raises:
        ModelError: for an unknown recipe, a finished run, or a run that another recipe began.
    """
    path = Path(recipe) if Path(recipe).is_file() else models_zoo.recipe_path(recipe)
    fields, text = read_recipe(path, overrides)
    run = Path(run)
    prepare_folder(run, text, force)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # says which devices it sees, and advertises
    L.seed_everything(fields.seed, verbose=False)
    data = GenomeData(fields.data)
    data.setup("fit")
    (run / "splits.tsv").write_text(splits_of(data).to_tsv(), encoding="utf-8")
    training = ClassifierTraining(SequenceClassifier(model_config(fields, data.labels)), fields.optim, fields.log_every)
    started = time.monotonic()
    step = fit(training, data, fields, run, max_minutes, progress)
    note_minutes(run, (time.monotonic() - started) / 60)
    plot_curves(run / "metrics.csv", run / "curves.png")
    if step < fields.optim.steps:
        log.info("stopped at step %d of %d; the same command goes on", step, fields.optim.steps)
        return run
    return finish(training.model, fields, data, run)


def splits_of(data: GenomeData) -> Splits:
    """Return every stretch of training, validation and test, those of separate test genomes too."""
    return Splits(tuple(i for i in data.splits.intervals if i.split != "test") + tuple(data.test_intervals))


def model_config(recipe: Recipe, labels: list[str]) -> ModelConfig:
    """Return the config of the model that a recipe trains."""
    from mamba_seq.data_prep.alphabet import DNA

    return ModelConfig(
        task="sequence-classification",
        backbone=recipe.model,
        vocab_size=len(DNA.symbols),
        alphabet=DNA.name,
        labels=labels,
        context=recipe.context,
        pooling=recipe.pooling,
    )


def prepare_folder(run: Path, recipe_text: str, force: bool) -> None:
    """Make the run's folder, or check that what is in it belongs to this recipe and is not finished."""
    if force and run.exists():
        if any(run.iterdir()) and not (run / "recipe.yaml").is_file():
            raise ModelError(
                f"{run} is no run: it has no recipe.yaml, so --force does not remove it; name another folder"
            )
        shutil.rmtree(run)
    if (run / "model" / "config.json").is_file():
        raise ModelError(f"{run} holds a finished run; name another folder, or say --force to begin anew")
    saved = run / "recipe.yaml"
    if saved.is_file() and saved.read_text(encoding="utf-8") != recipe_text:
        raise ModelError(f"{run} was begun with another recipe (see {saved}); name another folder, or say --force")
    run.mkdir(parents=True, exist_ok=True)
    saved.write_text(recipe_text, encoding="utf-8")


def fit(
    training: ClassifierTraining, data: GenomeData, recipe: Recipe, run: Path, max_minutes: float | None, progress: bool
) -> int:
    """Train from the last checkpoint, if there is one; return the number of steps that are done in all."""
    checkpoint = run / "checkpoints" / "last.ckpt"
    gpu = torch.cuda.is_available()
    mixed = recipe.precision == "bf16" or (recipe.precision == "auto" and gpu)
    start = resumed_step(checkpoint)
    data.start_step = start
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=checkpoint.parent,
            filename=checkpoint.stem,
            every_n_train_steps=recipe.val_every,
            enable_version_counter=False,
        )
    ]
    if max_minutes is not None:
        callbacks.append(StopAfter(max_minutes))
    if progress:
        callbacks.append(RichProgressBar())
    trainer = L.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=-1,
        max_steps=recipe.optim.steps,
        val_check_interval=recipe.val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=recipe.log_every,
        logger=MetricsFile(run / "metrics.csv", start),
        callbacks=callbacks,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=run,
    )
    resume = str(checkpoint) if checkpoint.is_file() else None
    with warnings.catch_warnings():
        # a resumed run's folder holds its checkpoint, and windows are made fast enough without worker processes
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", ".* does not have many workers")
        trainer.fit(training, datamodule=data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(checkpoint)
    return trainer.global_step


def resumed_step(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint has behind it; 0 when there is none."""
    if not checkpoint.is_file():
        return 0
    step: int = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    return step


def note_minutes(run: Path, minutes: float) -> None:
    """Add the minutes of this call to the run's record: the card says how long the training took in all."""
    with (run / "minutes.csv").open("a", encoding="utf-8") as file:
        file.write(f"{minutes:.2f}\n")


class StopAfter(Callback):
    """Ends training after some minutes; Lightning's own timer enters the checkpoint and is missed in a later run."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop after the step that passes the deadline."""
        if time.monotonic() >= self.deadline:
            trainer.should_stop = True
