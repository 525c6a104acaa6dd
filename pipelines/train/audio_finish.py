"""What follows the last training step of a waveform model: the saved model, its bits per sample on the test, the card.

Each result is a file of the run's folder, so that what is there is not done again; the model's folder appears at the
very end.
"""

import dataclasses
import datetime
import json
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_seq.data_prep.audio import AudioData
from mamba_seq.data_prep.audio_clips import IGNORED, EvaluationClips, inputs_and_targets
from mamba_seq.data_prep.audio_splits import HELD_OUT
from mamba_seq.data_prep.codecs import bits_per_sample
from mamba_seq.heads import LanguageModel
from mamba_seq.loading import from_pretrained
from mamba_seq.padding import at_least_float32
from mamba_seq.pipelines.runtime import mixed_precision
from mamba_seq.pipelines.train.audio_recipe import AudioRecipe
from mamba_seq.pipelines.train.card import AUDIO_CARD, render_card
from mamba_seq.pipelines.train.finish import hardware, kept, versions
from mamba_seq.pipelines.train.folder import BASELINE, CURVES, EVALUATION, MODEL, RECIPE, SPLITS, STAGING
from mamba_seq.pipelines.train.starting import described

log = logging.getLogger("mamba_seq.train")

HISTOGRAM_CLIPS = 1024
"""Training clips that the baseline counts levels in."""
RESAMPLES = 1000
"""Draws of clips for an interval."""


def finish(model: LanguageModel, recipe: AudioRecipe, data: AudioData, run: Path, steps: int, minutes: float) -> Path:
    """Save the model, measure it and the baseline, write card and curves; return the model's folder."""
    staging = model.save_pretrained(run / STAGING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # what is measured is what was stored, rounding included
    saved = cast("LanguageModel", from_pretrained(staging, device))
    clips = data.evaluation_clips("test", recipe.data.test_clips)
    baseline = kept(run / BASELINE, lambda: histogram(data).tolist())
    evaluation = kept(run / EVALUATION, lambda: measure(saved, data, clips, np.array(baseline), device))
    record = make_record(recipe, data, evaluation, sum(p.numel() for p in model.parameters()), steps, minutes)
    for name in (CURVES, RECIPE, SPLITS):
        (staging / name).write_bytes((run / name).read_bytes())
    (staging / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(render_card(record, AUDIO_CARD), encoding="utf-8")
    return staging.rename(run / MODEL)


def measure(
    model: LanguageModel, data: AudioData, clips: EvaluationClips, histogram: np.ndarray, device: torch.device
) -> list[dict[str, Any]]:
    """Measure the bits per sample of test clips, a row for each collection, and one for all if there are several."""
    log_frequency = torch.from_numpy(np.log(histogram)).float().to(device)
    nats: list[Tensor] = []
    plain: list[Tensor] = []
    counts: list[Tensor] = []
    with torch.inference_mode():
        for batch in data.evaluation_loader(clips):
            inputs, targets = inputs_and_targets(type(batch)(*(each.to(device) for each in batch)), data.codec.silence)
            with mixed_precision(device):
                logits = model(inputs, labels=batch.labels.to(device) if model.config.labels else None)
            known = targets != IGNORED
            nats.append(_of_clips(at_least_float32(logits), targets))
            plain.append(_of_clips(log_frequency.expand(*targets.shape, -1), targets))
            counts.append(known.sum(dim=1))
    found, baseline, samples = (torch.cat(each).double().cpu().numpy() for each in (nats, plain, counts))
    sources = np.array([clips.source(i) for i in range(len(clips))])
    names = sorted(set(sources.tolist()))
    rows = [_row(name, sources == name, found, baseline, samples, data) for name in names]
    if len(names) > 1:
        rows.append(_row("all", np.ones(len(sources), dtype=bool), found, baseline, samples, data))
    return rows


def histogram(data: AudioData) -> np.ndarray:
    """Return the frequency of each level in training clips, none of them 0: the baseline, which hears nothing."""
    clips = data.evaluation_clips("train", HISTOGRAM_CLIPS)
    counts = np.ones(data.codec.levels)
    for i in range(len(clips)):
        counts += np.bincount(clips[i].levels, minlength=data.codec.levels)
    frequencies: np.ndarray = counts / counts.sum()
    return frequencies


def make_record(
    recipe: AudioRecipe,
    data: AudioData,
    evaluation: list[dict[str, Any]],
    parameters: int,
    steps: int,
    minutes: float,
) -> dict[str, Any]:
    """Gather what the card says and `mamba-seq zoo show` prints."""
    held_out = HELD_OUT[recipe.data.split]
    training = data.splits.of("train")
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "labels": data.labels if recipe.conditional else [],
        "label_dropout": recipe.data.label_dropout,
        "speed": recipe.data.speed,
        "flip": recipe.data.flip,
        "skip": recipe.data.skip,
        "trim": recipe.data.trim,
        "guidance": recipe.guidance,
        "data_source": recipe.data_source,
        "data_licence": recipe.data_licence,
        "weights_licence": recipe.weights_licence,
        "split": f"{held_out}.",
        "limits": recipe.limits,
        "codec": data.codec.name,
        "sample_rate": recipe.data.sample_rate,
        "length": recipe.data.length,
        "training_files": len(training),
        "training_minutes": sum(f.info.frames / f.info.sample_rate for f in training) / 60,
        "skipped": len(data.skipped) + len(data.sounds.damaged),
        "parameters": parameters,
        "model": dataclasses.asdict(recipe.model),
        "optim": dataclasses.asdict(recipe.optim),
        "steps": steps,
        "start_from": described(recipe.start_from, "language-model"),
        "batch_size": recipe.data.batch_size,
        "seed": recipe.seed,
        "data_seed": recipe.data.seed,
        **hardware(recipe.precision),
        "minutes": minutes,
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "results": evaluation,
    }


def _of_clips(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed negative log-likelihood of each clip (B,) in nats."""
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none").sum(dim=1)


def _row(
    name: str, here: np.ndarray, nats: np.ndarray, plain: np.ndarray, samples: np.ndarray, data: AudioData
) -> dict[str, Any]:
    """Return bits per sample of some clips, with an interval: clips drawn again, 95 %."""
    nats, plain, samples = nats[here], plain[here], samples[here]
    total = max(1.0, samples.sum())
    bits = bits_per_sample(nats.sum() / total)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(nats), size=(RESAMPLES, len(nats)))
    again = np.array([nats[d].sum() / max(1.0, samples[d].sum()) for d in drawn])
    low, high = (bits_per_sample(float(q)) for q in np.quantile(again, (0.025, 0.975)))
    log.info("%s: %.3f bits per sample in %d test clips", name, bits, len(nats))
    return {
        "source": name,
        "clips": len(nats),
        "minutes": samples.sum() / data.config.sample_rate / 60,
        "bits": bits,
        "low": low,
        "high": high,
        "histogram": bits_per_sample(plain.sum() / total),
    }
