"""The data of a run: read, encoded, split, and described before anything is trained."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.errors import NoRecords, TooFewData
from mamba_seq.data_prep.labelled import Example, Labelled, LabelledConfig, read_labelled
from mamba_seq.data_prep.labelled_folders import WITHOUT_CLASSES
from mamba_seq.data_prep.labelled_inputs import Inputs, Reader, choose_reader
from mamba_seq.data_prep.labelled_missing import decimal_commas
from mamba_seq.data_prep.labelled_report import describe
from mamba_seq.data_prep.labelled_splits import assign_splits
from mamba_seq.data_prep.labelled_targets import Targets, infer_task, make_targets, standardise
from mamba_seq.data_prep.splits import Split
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe

WHERE_LABELS = "name the column of labels with --label, or give them in a table with --labels-file"


@dataclasses.dataclass
class Dataset:
    """Examples with their inputs, targets and splits, in the order of the data."""

    data: Labelled
    reader: Reader
    targets: Targets
    splits: list[Split]
    inputs: list[Inputs]
    lines: list[str]
    """What was seen, for the log and the card."""
    warnings: list[str]
    path: str
    """Of the data."""

    @property
    def name(self) -> str:
        """The data's name, without the folders that lead to it."""
        return Path(self.path).name

    def of(self, split: Split) -> list[int]:
        """Return the numbers of the examples of a split."""
        return [i for i, each in enumerate(self.splits) if each == split]

    def described(self) -> tuple[list[str], list[str]]:
        """Return lines and warnings for the card, with the data's name instead of its place on this machine."""
        return [line.replace(self.path, self.name) for line in self.lines], [
            line.replace(self.path, self.name) for line in self.warnings
        ]

    def splits_table(self) -> str:
        """Return the table of splits: id, split, where."""
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t", lineterminator="\n")
        writer.writerow(("id", "split", "where"))
        writer.writerows(
            (e.id, s, e.where.replace(self.path, self.name))
            for e, s in zip(self.data.examples, self.splits, strict=True)
        )
        return out.getvalue()


def prepare(recipe: FinetuneRecipe, start: ModelConfig | None) -> Dataset:
    """Read and split the data of a run.

    Args:
        recipe: of the run.
        start: config of the model that is fine-tuned.

    Raises:
        DataError: For data that cannot be read, do not fit the model, or are too few.
    """
    data = read_labelled(recipe.data_path, recipe.data)
    task = recipe.task or infer_task(data)
    data, warnings = usable(data, labelled=task != "language-model")
    if recipe.task is None and task == "language-model":
        if data.kind.startswith(WITHOUT_CLASSES):
            raise NoRecords(
                f"{recipe.data_path} is {data.kind}: put the files of each class into a folder of its name, or give "
                "labels in a table with --labels-file"
            )
        warnings.append(f"no label was found in {recipe.data_path}, so the next token is learnt; {WHERE_LABELS}")
    elif not task.endswith("regression"):
        warnings += decimal_commas(data)
    if len(data.examples) < 3:
        raise TooFewData(f"{recipe.data_path} has {len(data.examples)} usable examples, expected at least 3")
    targets = make_targets(data, task)
    seed = recipe.seed if recipe.split_seed is None else recipe.split_seed
    assigned = assign_splits(data.examples, targets, recipe.test_fraction, recipe.validation_fraction, seed)
    training = [split == "train" for split in assigned.splits]
    if task.endswith("regression"):
        standardise(targets, training)
    reader = _reader(recipe, data, training, start)
    if recipe.strand == "both" and reader.alphabet not in ("dna", "rna"):
        raise RecipeError(
            f"strand is both, and {reader.alphabet or 'the input'} has no other strand; say --strand=forward"
        )
    if recipe.mask_fraction and reader.alphabet is None and reader.input_features is None:
        raise RecipeError("mask_fraction is above 0, and integer tokens have none that is unknown; leave it 0")
    inputs = [reader.encode(e) for e in data.examples]
    lines = describe(data, reader, targets, assigned)
    longer = sum(len(each) > recipe.max_length for each in inputs)
    if longer:
        warnings.append(
            f"{longer} sequences are longer than {recipe.max_length:,} positions, and trained on in part (max_length)"
        )
    return Dataset(
        data,
        reader,
        targets,
        assigned.splits,
        inputs,
        lines,
        [*data.warnings, *warnings, *assigned.warnings],
        recipe.data_path,
    )


def prepare_for(config: ModelConfig, path: str, options: LabelledConfig) -> tuple[Labelled, Reader, Targets]:
    """Read data for a model that is there; labels are encoded where the data have any."""
    if config.sample_rate is not None:
        options = dataclasses.replace(options, sample_rate=config.sample_rate)
    data = read_labelled(path, options)
    return data, reader_of(config), make_targets(data, config.task, list(config.labels))


def reader_of(config: ModelConfig) -> Reader:
    """Return how a model reads examples."""
    if config.input_features is None:
        return Reader(alphabet=config.alphabet, vocab_size=config.vocab_size)
    mean = tuple(config.input_mean) or (0.0,) * config.input_features
    return Reader(
        input_features=config.input_features,
        input_mean=mean,
        input_scale=tuple(config.input_scale) or (1.0,) * config.input_features,
    )


def usable(data: Labelled, labelled: bool) -> tuple[Labelled, list[str]]:
    """Leave out examples without a sequence or, where they are needed, without a label; say so."""
    warnings = []
    kept: list[Example] = data.examples
    for what, wrong in (("no sequence", lambda e: e.length == 0), ("no label", lambda e: labelled and e.label is None)):
        bad = [e for e in kept if wrong(e)]
        if bad:
            warnings.append(f"{len(bad)} examples have {what} and are left out, the first is {bad[0].where}")
            kept = [e for e in kept if not wrong(e)]
    if not kept:
        raise NoRecords(f"none of the {len(data.examples)} examples can be used: {warnings[-1]}; {WHERE_LABELS}")
    return dataclasses.replace(data, examples=kept), warnings


def _reader(recipe: FinetuneRecipe, data: Labelled, training: list[bool], start: ModelConfig | None) -> Reader:
    seen: list[Any] = [e for e, used in zip(data.examples, training, strict=True) if used]
    if start is not None and start.input_features is None:
        # a pretrained model's tokens are what they are
        return Reader(alphabet=start.alphabet, vocab_size=start.vocab_size)
    chosen = choose_reader(seen, recipe.alphabet)
    if chosen.alphabet is not None and chosen.alphabet.startswith("symbols:"):
        chosen = choose_reader(data.examples, recipe.alphabet)
    elif chosen.vocab_size is not None and chosen.alphabet is None:
        chosen = choose_reader(data.examples, recipe.alphabet)
        if data.codec is not None:
            chosen = dataclasses.replace(chosen, vocab_size=256)
    if start is not None and start.input_features != chosen.input_features:
        raise RecipeError(
            f"the data have {chosen.input_features or 'no'} numbers a position, and the model reads "
            f"{start.input_features}"
        )
    return chosen
