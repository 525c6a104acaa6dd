"""Predictions of a saved model for data of any form, and how good they are where the data have labels."""

import logging
from collections import Counter
from typing import Any

import torch

from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.errors import BadRecord, NoRecords
from mamba_seq.data_prep.labelled import Labelled, LabelledConfig
from mamba_seq.data_prep.labelled_inputs import Inputs, Reader
from mamba_seq.data_prep.labelled_targets import Targets
from mamba_seq.pipelines.finetune import tables
from mamba_seq.pipelines.finetune.dataset import prepare_for
from mamba_seq.pipelines.finetune.predictions import predict_inputs
from mamba_seq.pipelines.finetune.scores import measure

log = logging.getLogger("mamba_seq.finetune")


class Predicted:
    """What a model says of each example of some data.

    Attributes:
        statuses: ok, or why there is no result.
        results: As `predictions.predict_inputs` gives them; None where there is none.
    """

    def __init__(
        self,
        model: Any,
        path: str,
        options: LabelledConfig,
        device: torch.device,
        batch_tokens: int,
        strand: str | None,
    ) -> None:
        self.config: ModelConfig = model.config
        found = prepare_for(self.config, path, options)
        self.data: Labelled = found[0]
        self.targets: Targets = found[2]
        for warning in self.data.warnings:
            log.warning("%s", warning)
        self.statuses, inputs = self._read(found[1])
        kept = [i for i, each in enumerate(inputs) if each is not None]
        strand = strand or self.config.strand or "forward"
        self.results: list[Any] = [None] * len(inputs)
        given = [inputs[i] for i in kept]
        results = predict_inputs(model, given, device, batch_tokens, strand)  # type: ignore[arg-type]
        for i, result in zip(kept, results, strict=True):
            self.results[i] = result
        counts = Counter(self.statuses)
        log.info("%s sequences: %s", f"{len(inputs):,}", ", ".join(f"{n:,} {status}" for status, n in counts.items()))

    def table(self) -> bytes:
        """Return a row an example; with the truth where the data have any."""
        truth = any(e.label is not None for e in self.data.examples)
        rows = [
            tables.row(e, status, result, self.config, truth)
            for e, status, result in zip(self.data.examples, self.statuses, self.results, strict=True)
        ]
        return tables.to_tsv([tables.header(self.config, truth), *rows])

    def measured(self, split: str | None = None, seed: int = 0) -> tuple[dict[str, dict[str, float]], int]:
        """Return the metrics of the task, with intervals, and on how many examples.

        Args:
            split: only the examples of this split.
            seed: of the bootstrap.

        Raises:
            DataError: No example has a label and a prediction, or a label is none of the model's.
        """
        for label, n in self.targets.unknown.items():
            raise BadRecord(
                f"label {label!r} came {n} times, which the model does not know; it knows "
                f"{', '.join(self.config.labels)}"
            )
        examples = self.data.examples
        generative = self.config.task == "language-model"
        rows = [
            i
            for i, e in enumerate(examples)
            if self.results[i] is not None
            and (generative or self.targets.values[i] is not None)
            and (split is None or e.split == split)
        ]
        if not rows:
            what = f" of the split {split!r}" if split is not None else ""
            raise NoRecords(f"no example{what} has a label and a prediction; name the column of labels with --label")
        groups = [examples[i].group for i in rows]
        values = [self.targets.values[i] for i in rows]
        return measure(self.targets, [self.results[i] for i in rows], values, groups, seed), len(rows)

    def _read(self, reader: Reader) -> tuple[list[str], list[Inputs | None]]:
        statuses, inputs, first = list[str](), list[Inputs | None](), None
        for e in self.data.examples:
            if e.length == 0:
                statuses.append(tables.EMPTY)
                inputs.append(None)
                continue
            try:
                codes = reader.encode(e)
            except BadRecord as error:
                first = first or str(error)
                statuses.append(tables.INVALID)
                inputs.append(None)
                continue
            long = self.config.positions is not None and len(codes) > self.config.positions
            statuses.append(tables.TOO_LONG if long else tables.OK)
            inputs.append(None if long else codes)
        if first is not None:
            log.warning("%d examples have no prediction: %s", statuses.count(tables.INVALID), first)
        if tables.TOO_LONG in statuses:
            log.warning(
                "%d examples have more than the %s positions that the model knows",
                statuses.count(tables.TOO_LONG),
                self.config.positions,
            )
        if not any(each is not None for each in inputs):
            raise NoRecords(f"none of {len(inputs)} examples can be read: {first or 'all are empty or too long'}")
        return statuses, inputs
