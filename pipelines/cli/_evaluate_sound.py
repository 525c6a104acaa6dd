"""What `mamba-seq evaluate` does with folders of sound: scores of generated speech, or the likelihood of recordings."""

from pathlib import Path
from typing import Any

import click

from mamba_seq.pipelines.cli._shell import Settings

CLASSIFIER = "digits-classifier.mel"
"""What hears generated speech when no model is named."""


def is_sound(data: str, model: str | None, real: str | None, records: bool) -> bool:
    """Whether DATA is to be measured as sound: recordings stand beside it, or it is sound and so is the model.

    A model that was fine-tuned on labelled sound is measured as such, on records.
    """
    if real is not None:
        return True
    if records or not Path(data).is_dir():
        return False
    from mamba_seq.pipelines.speech.clips import holds_sound

    if not holds_sound(Path(data)):
        return False
    return model is None or _kind(model) != "other"


def evaluate_sound(
    settings: Settings,
    data: str,
    model: str | None,
    output: str,
    format_: str,
    *,
    splits: str | None,
    only: str | None,
    real: str | None,
    json_file: str | None,
) -> None:
    """Write the table of a folder of sound; what matters most of it is said on standard error."""
    from mamba_seq.pipelines.output import check_outputs, open_output
    from mamba_seq.pipelines.runtime import start

    spec = model or CLASSIFIER
    check_outputs([each for each in (output, json_file) if each is not None], (splits,) if splits else ())
    device = start(settings.device, settings.threads, settings.seed)
    waveform = _kind(spec) == "waveform"
    if waveform and real is not None:
        raise click.UsageError(f"--real is for generated speech and a model that hears words; {spec} makes waveforms.")
    if not waveform and (splits or only):
        raise click.UsageError(f"--splits and --only are for recordings and a model of waveforms; {spec} hears words.")
    tell = _likelihood if waveform else _speech
    table, text = tell(settings, data, spec, device, splits=splits, only=only, real=real)
    if json_file is not None:
        with open_output(json_file) as sink:
            sink.write(text.encode())
    with open_output(output) as sink:
        sink.write((table if format_ == "tsv" else text).encode())


def _speech(settings: Settings, data: str, spec: str, device: Any, *, real: str | None, **_: Any) -> tuple[str, str]:
    import logging

    from mamba_seq.pipelines.cli._messages import progress
    from mamba_seq.pipelines.speech import classifier, clips, measure

    hearing = classifier.load_classifier(spec, device)
    seed = settings.seed or 0
    with progress("evaluating", verbosity=settings.verbosity) as show:
        show("generated clips")
        made = clips.read_clips(data, hearing.sample_rate, hearing.length, hearing.labels)
        recordings = None
        if real is not None:
            show("recordings")
            recordings = clips.read_clips(real, hearing.sample_rate, hearing.length, hearing.labels)
        show("scores")
        found = measure.measure(hearing, made, recordings, device, seed)
    log = logging.getLogger("mamba_seq.pipelines")
    for line in measure.summary(found):
        log.info("%s", line)
    about: dict[str, Any] = {"model": spec, "data": data, "real": real, "seed": seed, "clips": len(made.files)}
    about |= {"recordings": None if recordings is None else len(recordings.files)}
    return measure.to_tsv(found), measure.to_json(found, about)


def _likelihood(
    settings: Settings, data: str, spec: str, device: Any, *, splits: str | None, only: str | None, **_: Any
) -> tuple[str, str]:
    import dataclasses
    import json
    import logging
    import math
    from typing import cast

    from mamba_seq.heads import LanguageModel
    from mamba_seq.loading import from_pretrained
    from mamba_seq.pipelines.models import locate_model
    from mamba_seq.pipelines.speech.likelihood import measure_bits, to_tsv

    model = cast("LanguageModel", from_pretrained(locate_model(spec), device))
    seed = settings.seed or 0
    rows = measure_bits(model, data, device, splits, only, seed)
    log = logging.getLogger("mamba_seq.pipelines")
    for row in rows:
        plain = "" if math.isnan(row.histogram) else f"; {row.histogram:.3f} by the histogram of training levels"
        log.info(
            "%s, %s: %.3f bits per sample (%.3f to %.3f, %d clips)%s",
            *(row.source, row.split, row.bits, row.low, row.high, row.clips, plain),
        )
    fields = [{k: None if v != v else v for k, v in dataclasses.asdict(row).items()} for row in rows]
    about = {"model": spec, "data": data, "splits": splits, "seed": seed, "codec": model.config.codec}
    return to_tsv(rows), json.dumps({**about, "results": fields}, indent=1) + "\n"


def _kind(spec: str) -> str:
    """Return "words", "waveform" or "other", as the model's config says."""
    import json

    from mamba_seq.pipelines.models import locate_model
    from mamba_seq.pipelines.speech.sc09_checkpoint import ARCHITECTURE

    try:
        config = json.loads((locate_model(spec) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "other"
    if config.get("architecture") == ARCHITECTURE or config.get("features"):
        return "words"
    return "waveform" if config.get("codec") and config.get("task") == "language-model" else "other"
