"""A training run and its folder.

    RUN/recipe.yaml            every field of the recipe, as it was run
    RUN/splits.tsv             which regions of which genome were trained on, validated on, tested on
    RUN/metrics.csv            step,name,value
    RUN/checkpoints/last.ckpt  weights, optimiser, step and minutes: a run that was killed goes on from here
    RUN/curves.png             loss and accuracy
    RUN/baseline.json          the k-mer baseline on the test windows
    RUN/calibration.json       the model's calibration on validation windows
    RUN/evaluation.json        what the model reaches on them
    RUN/model/                 the saved model with its card: here when everything is done

The same command starts a run, continues it, and refuses to touch one that is finished.
"""

import dataclasses
import logging
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar

from mamba_seq import models_zoo
from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.dna import GenomeData
from mamba_seq.data_prep.errors import DataError
from mamba_seq.data_prep.genome_windows import EvaluationWindows
from mamba_seq.data_prep.splits import Splits
from mamba_seq.errors import ModelError
from mamba_seq.heads import SequenceClassifier
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.callbacks import Checkpoint, StopAfter
from mamba_seq.pipelines.train.finish import finish
from mamba_seq.pipelines.train.folder import CHECKPOINT, CURVES, METRICS, begin, check_folder
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
        DataError: for genomes that cannot be read, or are too few for the recipe.
        RecipeError: for a recipe that asks of the data what they cannot give.
    """
    path = Path(recipe) if Path(recipe).is_file() else models_zoo.recipe_path(recipe)
    fields, text = read_recipe(path, overrides)
    run = Path(run)
    check_folder(run, text, force)
    data = GenomeData(fields.data)
    tests = prepare_data(data, fields)
    config = model_config(fields, data.labels)
    start = None if fields.start_from is None else starting_weights(fields.start_from, config)
    begin(run, text, splits_of(data).to_tsv(), force)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # says which devices it sees, and advertises
    L.seed_everything(fields.seed, verbose=False)
    model = SequenceClassifier(config)
    if start is not None:
        model.load_state_dict(start)
    training = ClassifierTraining(model, fields.optim, fields.log_every, fields.seed)
    step, minutes = fit(training, data, fields, run, max_minutes, progress)
    plot_curves(run / METRICS, run / CURVES)
    planned = fields.optim.minutes
    if step < fields.optim.steps and (planned is None or minutes < planned):
        end = f"of {fields.optim.steps}" if planned is None else f"after {minutes:.1f} of {planned:g} minutes"
        log.info("stopped at step %d %s; the same command goes on", step, end)
        return run
    return finish(training.model, fields, data, tests, run, step, minutes)


def prepare_data(data: GenomeData, recipe: Recipe) -> list[EvaluationWindows]:
    """Read and split the genomes, and draw the test windows: what cannot be had is refused before the training."""
    try:
        data.setup("fit")
        data.training_batches()
        data.val_dataloader()
        for length in recipe.evaluation.lengths:
            data.evaluation_windows("train", length, 1)  # for the baseline
        return [
            data.evaluation_windows("test", length, count)
            for length, count in zip(recipe.evaluation.lengths, recipe.evaluation.windows_per_class, strict=True)
        ]
    except DataError:
        raise
    except ValueError as error:
        raise RecipeError(f"the recipe's data section cannot be used: {error}") from error


def splits_of(data: GenomeData) -> Splits:
    """Return every stretch of training, validation and test, those of separate test genomes too."""
    return Splits(tuple(i for i in data.splits.intervals if i.split != "test") + tuple(data.test_intervals))


def starting_weights(folder: str, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Return the weights of the saved model that a run begins with.

    Raises:
        ModelError: when there is none, or it is of other sizes or labels than the recipe's.
    """
    saved = from_pretrained(folder)
    ours, theirs = (
        dataclasses.replace(each, context=None, calibration=None, taxonomy=None, mamba_seq_version="")
        for each in (config, saved.config)
    )
    # neither is a matter of the weights
    theirs.backbone = dataclasses.replace(theirs.backbone, dropout=ours.backbone.dropout)
    different = [
        f"{field.name} {getattr(theirs, field.name)} instead of {getattr(ours, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if different:
        raise ModelError(
            f"start_from {folder} is another model than the recipe's: {different[0]}; change one of the two"
        )
    return saved.state_dict()


def model_config(recipe: Recipe, labels: list[str]) -> ModelConfig:
    """Return the config of the model that a recipe trains.

    Raises:
        RecipeError: when the recipe's taxonomy is that of other labels.
    """
    from mamba_seq.data_prep.alphabet import DNA

    if recipe.taxonomy is not None and set(recipe.taxonomy) != set(labels):
        odd = min(set(recipe.taxonomy) ^ set(labels))
        raise RecipeError(f"the recipe's taxonomy and the class folders differ in {odd!r}; give every folder a lineage")
    return ModelConfig(
        task="sequence-classification",
        backbone=recipe.model,
        vocab_size=len(DNA.symbols),
        alphabet=DNA.name,
        labels=labels,
        context=recipe.context,
        pooling=recipe.pooling,
        taxonomy=recipe.taxonomy,
    )


def fit(
    training: ClassifierTraining, data: GenomeData, recipe: Recipe, run: Path, max_minutes: float | None, progress: bool
) -> tuple[int, float]:
    """Train from the last checkpoint, if there is one; return how many steps are done in all, and in what minutes."""
    checkpoint = Checkpoint(run / CHECKPOINT)
    gpu = torch.cuda.is_available()
    mixed = recipe.precision == "bf16" or (recipe.precision == "auto" and gpu)
    start = resumed_step(checkpoint.path)
    data.start_step = start
    callbacks: list[Callback] = [checkpoint]
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
    resume = str(checkpoint.path) if checkpoint.path.is_file() else None
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        # windows are made fast enough without worker processes
        warnings.filterwarnings("ignore", ".* does not have many workers")
        try:
            trainer.fit(training, datamodule=data, ckpt_path=resume, weights_only=True)
        except SystemExit:
            if not trainer.interrupted:
                raise
            # Lightning makes of Ctrl-C an exit with 1, and leaves the process deaf to the next
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
    checkpoint.save(trainer)
    return trainer.global_step, checkpoint.minutes


def resumed_step(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint has behind it; 0 when there is none.

    Raises:
        ModelError: when it cannot be read.
    """
    if not checkpoint.is_file():
        return 0
    try:
        step: int = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # torch names no type for what may be wrong with a file
        raise ModelError(
            f"{checkpoint} cannot be read as a checkpoint: {(str(error).splitlines() or [repr(error)])[0]}; "
            "put a copy of it back, or say --force to begin anew"
        ) from error
    return step
