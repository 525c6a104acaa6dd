"""Bits per sample of recordings under a waveform model, beside the histogram of levels, by collection and split."""

import csv
import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mamba_seq.data_prep.audio_clips import IGNORED, NO_LABEL, EvaluationClips, collate, inputs_and_targets
from mamba_seq.data_prep.audio_files import AudioFile, detect_layout, find_audio
from mamba_seq.data_prep.audio_sounds import Sounds
from mamba_seq.data_prep.codecs import Codec, bits_per_sample, get_codec
from mamba_seq.data_prep.errors import BadRecord, TooFewData, UnreadableFile
from mamba_seq.errors import ModelError
from mamba_seq.heads import LanguageModel
from mamba_seq.padding import at_least_float32
from mamba_seq.pipelines.runtime import mixed_precision
from mamba_seq.pipelines.speech.intervals import bootstrap

log = logging.getLogger("mamba_seq.pipelines")

BATCH = 16
HEADER = "source\tsplit\tclips\tsamples\tbits\tlow\thigh\thistogram"


@dataclass(frozen=True)
class Bits:
    """A row of the table."""

    source: str
    split: str
    """"all" where no split is known."""
    clips: int
    samples: int
    bits: float
    low: float
    high: float
    histogram: float
    """Bits per sample when all that is known is how often each level occurs in training clips; NaN without any."""


def measure_bits(
    model: LanguageModel,
    folder: str | Path,
    device: torch.device,
    splits: str | Path | None = None,
    only: str | None = None,
    seed: int = 0,
) -> list[Bits]:
    """Measure the likelihood of recordings, those of a collection and a split together.

    A clip is a file, or pieces of the model's context of a longer one; what a shorter one is filled up with does not
    count.

    Args:
        model: of sound, conditional or not.
        folder: of recordings; labelled, by their collection's layout or by folders, if the model is conditional.
        device: where the model is.
        splits: a run's splits.tsv; without it what the collection says of its files, if it says something.
        only: measure this split alone.
        seed: of the intervals' draws.

    Raises:
        ModelError: The model is none of sound.
        DataError: The recordings cannot be used, or have no labels.
    """
    config = model.config
    if config.codec is None or config.sample_rate is None:
        raise ModelError("the model is none of sound: its config names no codec; choose another -m")
    codec = get_codec(config.codec)
    files, of_split = _files(Path(folder), splits)
    numbers = _numbers(files, config.labels)
    sounds = Sounds(files, config.sample_rate, in_memory=False)
    length = config.context or config.sample_rate
    frequencies = _histogram(sounds, [i for i, s in enumerate(of_split) if s == "train"], numbers, codec, length)
    rows = []
    for source, split in sorted({(file.source, its) for file, its in zip(files, of_split, strict=True)}):
        if only is not None and split != only:
            continue
        chosen = [i for i, file in enumerate(files) if (file.source, of_split[i]) == (source, split)]
        clips = EvaluationClips(sounds, chosen, numbers, codec, length)
        rows.append(_row(model, clips, source, split, codec, frequencies, device, seed))
    if sounds.damaged:
        log.warning("%d recordings could not be read and count for nothing", len(sounds.damaged))
    if not rows:
        there = ", ".join(sorted(set(of_split)))
        raise TooFewData(f"no recording of {folder} is of the split {only!r}; there are {there}")
    return rows


def to_tsv(rows: list[Bits]) -> str:
    """Return the table: a header line, then a row a collection and split."""
    lines = [HEADER]
    for row in rows:
        numbers = [f"{x:.4f}" if math.isfinite(x) else "NA" for x in (row.bits, row.low, row.high, row.histogram)]
        lines.append("\t".join([row.source, row.split, str(row.clips), str(row.samples), *numbers]))
    return "\n".join(lines) + "\n"


def _row(
    model: LanguageModel,
    clips: EvaluationClips,
    source: str,
    split: str,
    codec: Codec,
    frequencies: NDArray[np.float64] | None,
    device: torch.device,
    seed: int,
) -> Bits:
    nats, counts, plain = _nats(model, clips, codec, frequencies, device)
    total = counts.sum()
    if not total:
        raise TooFewData(f"the recordings of {source} have no sample that can be read; see the warnings before this")
    bits = bits_per_sample(nats.sum() / total)
    low, high = bootstrap(
        lambda i: bits_per_sample(nats[i].sum() / max(1.0, counts[i].sum())), [len(nats)], bits, seed, lowest=0.0
    )
    histogram = math.nan if frequencies is None else bits_per_sample(plain.sum() / total)
    return Bits(source, split, len(nats), int(total), bits, low, high, histogram)


def _nats(
    model: LanguageModel,
    clips: EvaluationClips,
    codec: Codec,
    frequencies: NDArray[np.float64] | None,
    device: torch.device,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return of each clip the negative log-likelihood, its number of samples, and what the histogram gives it."""
    length = model.config.context or model.config.sample_rate or 1
    loader = DataLoader(clips, batch_size=BATCH, collate_fn=partial(collate, length=length, silence=codec.silence))
    table = None if frequencies is None else -np.log(frequencies)
    nats, counts, plain = [], [], []
    with torch.inference_mode():
        for batch in loader:
            inputs, targets = inputs_and_targets(type(batch)(*(each.to(device) for each in batch)), codec.silence)
            with mixed_precision(device):
                logits = model(inputs, labels=batch.labels.to(device) if model.config.labels else None)
            each = F.cross_entropy(
                at_least_float32(logits).transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
            )
            nats.append(each.double().sum(dim=1).cpu().numpy())
            counts.append(batch.lengths.double().numpy())
            for levels, n in zip(batch.levels.numpy(), batch.lengths.tolist(), strict=True):
                plain.append(0.0 if table is None else float(table[levels[:n].astype(np.int64)].sum()))
    return np.concatenate(nats), np.concatenate(counts), np.array(plain)


def _files(root: Path, splits: str | Path | None) -> tuple[list[AudioFile], list[str]]:
    """Return the recordings of a folder and the split of each."""
    files, _ = find_audio(root)
    if detect_layout([file.path for file in files]) == "folder":
        files, _ = find_audio(root, "folder", folder_labels=True)
    if splits is None:
        return files, [file.split or "all" for file in files]
    try:
        with Path(splits).open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{splits} cannot be read: {error}") from error
    if not rows or not {"file", "split", "source"} <= set(rows[0]):
        raise BadRecord(f"{splits} is no table of sound files; a run's splits.tsv, with source, file and split, is one")
    known = {(row["source"], row["file"]): row["split"] for row in rows}
    kept = [file for file in files if (file.source, file.file) in known]
    if not kept:
        raise BadRecord(f"{splits} names no file of {root}; it has {rows[0]['source']}/{rows[0]['file']} for one")
    if len(kept) < len(files):
        log.warning("%d recordings of %s are not in %s and are left out", len(files) - len(kept), root, splits)
    return kept, [known[file.source, file.file] for file in kept]


def _numbers(files: list[AudioFile], labels: list[str]) -> list[int]:
    """Return the class of each file, by a conditional model's labels."""
    if not labels:
        return [NO_LABEL] * len(files)
    for file in files:
        if file.label not in labels:
            raise BadRecord(
                f"{file.file} is of class {file.label or 'unknown'!r}, which the model does not know; it knows "
                f"{', '.join(labels)}"
            )
    return [labels.index(file.label) for file in files]


def _histogram(
    sounds: Sounds, train: list[int], numbers: list[int], codec: Codec, length: int
) -> NDArray[np.float64] | None:
    """Return how often each level occurs in training clips, none of them never; None without such clips."""
    if not train:
        return None
    clips = EvaluationClips(sounds, train, numbers, codec, length, 1024)
    counts = np.ones(codec.levels)
    for i in range(len(clips)):
        counts += np.bincount(clips[i].levels, minlength=codec.levels)
    return counts / counts.sum()
