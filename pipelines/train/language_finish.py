"""What follows the last training step of a DNA language model: the saved model, its bits per base by context, the card.

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
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import Codes
from mamba_seq.data_prep.markov import MarkovCounts, MarkovModel, bits_per_base, choose
from mamba_seq.data_prep.pretraining import PretrainingData, padded_batches
from mamba_seq.heads import LanguageModel
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.likelihood import LikelihoodScorer
from mamba_seq.pipelines.train.card import LANGUAGE_CARD, render_card
from mamba_seq.pipelines.train.finish import hardware, kept, versions
from mamba_seq.pipelines.train.folder import BASELINE, CURVES, EVALUATION, MODEL, RECIPE, SPLITS, STAGING
from mamba_seq.pipelines.train.language_recipe import LanguageRecipe
from mamba_seq.pipelines.train.starting import described

log = logging.getLogger("mamba_seq.train")

RESAMPLES = 1000
"""Draws of pieces for an interval."""
CPU_TOKENS, GPU_TOKENS = 1 << 15, 1 << 19
"""Most tokens of a batch in the evaluation."""
PIECE = 1 << 22
"""Bases that the baseline counts at a time."""


def finish(
    model: LanguageModel, recipe: LanguageRecipe, data: PretrainingData, run: Path, steps: int, minutes: float
) -> Path:
    """Save the model, measure it and the baseline, write card and curves; return the model's folder."""
    staging = model.save_pretrained(run / STAGING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # what is measured is what was stored, rounding included
    saved = cast("LanguageModel", from_pretrained(staging, device))
    contexts = recipe.contexts()
    pieces = data.held_out_pieces("test", max(contexts), recipe.evaluation.bases)
    places = data.held_out_places("test", max(contexts), recipe.evaluation.bases)
    sources = [data.corpus.records[place.record].label for place in places]
    baseline = kept(run / BASELINE, lambda: measure_baseline(data, recipe, pieces, sources))
    evaluation = kept(run / EVALUATION, lambda: measure(saved, pieces, sources, contexts, device))
    record = make_record(recipe, data, evaluation, baseline, sum(p.numel() for p in model.parameters()), steps, minutes)
    for name in (CURVES, RECIPE, SPLITS):
        (staging / name).write_bytes((run / name).read_bytes())
    (staging / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(render_card(record, LANGUAGE_CARD), encoding="utf-8")
    return staging.rename(run / MODEL)


def measure(
    model: LanguageModel, pieces: list[Codes], sources: list[str], contexts: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """Measure bits per base of the same pieces at each context: the model starts anew every so many bases.

    Args:
        model: the model.
        pieces: token ids (n,) of held-out pieces.
        sources: what each piece comes from; each gets a figure of its own too.
        contexts: the contexts.
        device: where the model is.
    """
    tokens = GPU_TOKENS if device.type == "cuda" else CPU_TOKENS
    scorer = LikelihoodScorer(model, device, tokens)
    known = np.array([np.count_nonzero(codes < 4) for codes in pieces])
    rows = []
    for context in contexts:
        parts = [
            (i, codes[at : at + context]) for i, codes in enumerate(pieces) for at in range(0, len(codes), context)
        ]
        bits = np.zeros(len(pieces))
        for batch, numbers in padded_batches([codes for _, codes in parts], tokens):
            sums = -scorer.rows(batch).nansum(dim=1).double().cpu().numpy()
            np.add.at(bits, [parts[i][0] for i in numbers], sums)
        value, low, high = interval(bits, known)
        whole = sum(len(codes) for codes in pieces if len(codes) >= context) / max(1, sum(map(len, pieces)))
        log.info("context %s: %.4f bits per base, perplexity %.4f", f"{context:,}", value, 2**value)
        rows.append(
            {
                "context": context,
                "bits": value,
                "low": low,
                "high": high,
                "perplexity": 2**value,
                "whole": whole,
                "pieces": len(pieces),
                "bases": int(known.sum()),
                "sources": by_source(bits, known, sources),
            }
        )
    return rows


def interval(bits: NDArray[np.float64], bases: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return bits per base and its 95 % interval, pieces drawn again."""
    drawn = np.random.default_rng(0).integers(len(bits), size=(RESAMPLES, len(bits)))
    again = bits[drawn].sum(axis=1) / np.maximum(1, bases[drawn].sum(axis=1))
    low, high = np.quantile(again, (0.025, 0.975))
    return float(bits.sum() / max(1, bases.sum())), float(low), float(high)


def by_source(bits: NDArray[np.float64], bases: NDArray[np.int64], sources: list[str]) -> dict[str, float]:
    """Return bits per base of the pieces of each source."""
    each = np.array(sources)
    return {name: float(bits[each == name].sum() / max(1, bases[each == name].sum())) for name in sorted(set(sources))}


def measure_baseline(
    data: PretrainingData, recipe: LanguageRecipe, pieces: list[Codes], sources: list[str]
) -> dict[str, Any]:
    """Fit Markov models to the training bases, and measure those of every order with the best prior on the test."""
    highest = recipe.evaluation.markov_order
    counts = MarkovCounts(highest)
    for stretch in data.stretches("train"):
        if stretch.weight:
            for start in range(stretch.start, stretch.end, PIECE):
                # what lies before a piece is its context
                first = max(stretch.start, start - highest)
                codes = data.corpus.fetch(stretch.record, first, min(start + PIECE, stretch.end))
                counts.add(codes, recipe.data.reverse_complement)
    validation = data.held_out_pieces("validation", recipe.data.length, recipe.data.validation_bases)
    best = choose(counts, validation, range(highest + 1))
    orders = {k: bits_per_base(_same_prior(counts, best, k), pieces) for k in range(highest + 1)}
    log.info("Markov model of order %d: %.4f bits per base", best.order, orders[best.order])
    known = np.array([np.count_nonzero(codes < 4) for codes in pieces])
    bits = np.array([-np.nansum(best.log2_probabilities(codes), dtype=np.float64) for codes in pieces])
    return {
        "order": best.order,
        "alpha": best.alpha,
        "bits": orders[best.order],
        "orders": orders,
        "sources": by_source(bits, known, sources),
    }


def make_record(
    recipe: LanguageRecipe,
    data: PretrainingData,
    evaluation: list[dict[str, Any]],
    baseline: dict[str, Any],
    parameters: int,
    steps: int,
    minutes: float,
) -> dict[str, Any]:
    """Gather what the card says and `mamba-seq zoo show` prints."""
    train = data.stretches("train")
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "labels": [],
        "data_source": recipe.data_source,
        "data_licence": recipe.data_licence,
        "limits": recipe.limits,
        "context": recipe.data.length,
        "training_bases": sum(stretch.end - stretch.start for stretch in train),
        "training_records": len({stretch.record for stretch in train}),
        "windows": recipe.data.windows,
        "soft_masked_weight": recipe.data.soft_masked_weight,
        "reverse_complement": recipe.data.reverse_complement,
        "length_warmup": recipe.data.length_warmup,
        "length_warmup_steps": recipe.data.length_warmup_steps,
        "parameters": parameters,
        "model": dataclasses.asdict(recipe.model),
        "optim": dataclasses.asdict(recipe.optim),
        "steps": steps,
        "start_from": described(recipe.start_from, "language-model"),
        "batch_tokens": recipe.data.batch_tokens,
        "seed": recipe.seed,
        "data_seed": recipe.data.seed,
        **hardware(recipe.precision),
        "minutes": minutes,
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "baseline": baseline,
        "results": evaluation,
    }


def _same_prior(counts: MarkovCounts, best: MarkovModel, order: int) -> MarkovModel:
    return best if order == best.order else counts.model(best.alpha, order)
