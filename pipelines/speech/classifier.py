"""What hears clips: a classifier of spoken words of this package, or the published one of SC09.

Shapes: N clips, L samples, F features, K classes.
"""

import json
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_seq.data_prep.mel import get_features
from mamba_seq.data_prep.words import NOTHING
from mamba_seq.errors import ModelError
from mamba_seq.heads import SequenceClassifier
from mamba_seq.heads.pooling import finish, gather
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.errors import PipelineError
from mamba_seq.pipelines.models import locate_model
from mamba_seq.pipelines.speech import sc09
from mamba_seq.pipelines.speech.sc09_checkpoint import ARCHITECTURE, load_sc09
from mamba_seq.saving import CONFIG_FILE

BATCH = 64


class Heard(NamedTuple):
    """What a classifier makes of clips."""

    features: NDArray[np.float64]
    """Vectors before its last layer (N, F)."""
    log_probabilities: NDArray[np.float64]
    """(N, K)."""


class Classifier(Protocol):
    """A classifier of clips."""

    labels: list[str]
    """Names of the K classes; one of them may be `NOTHING`."""
    sample_rate: int
    length: int
    """Samples of a clip."""

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, F) and logits (N, K) of clips (N, L)."""
        ...


class WordClassifier:
    """A `SequenceClassifier` of log-mel frames; see `Classifier`."""

    def __init__(self, model: SequenceClassifier) -> None:
        config = model.config
        assert config.features is not None
        assert config.sample_rate is not None
        self.model = model
        self.mel = get_features(config.features, config.sample_rate)
        self.labels, self.sample_rate = config.labels, config.sample_rate
        self.length = self.mel.hop * ((config.context or 81) - 1)

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, F) and logits (N, K) of clips (N, L)."""
        out = self.model.backbone(self.model.embed(self.mel(samples)))
        pooling = self.model.config.pooling
        features = finish(gather(out, pooling, None, None, None), pooling)
        return features, self.model.head(features)


class PublishedClassifier:
    """The classifier of published SC09 tables; see `Classifier`."""

    labels, sample_rate, length = sc09.DIGITS, sc09.SAMPLE_RATE, sc09.LENGTH

    def __init__(self, network: sc09.SC09ResNeXt) -> None:
        self.network = network

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, F) and logits (N, K) of clips (N, L)."""
        return self.network(sc09.spectrograms(samples))


def load_classifier(spec: str, device: torch.device) -> Classifier:
    """Load the classifier of clips that `-m` names.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it classifies no sound.
        PipelineError: when torchaudio is missing.
    """
    from mamba_seq.data_prep.mel import torchaudio

    folder = locate_model(spec)
    if _architecture(folder) == ARCHITECTURE:
        return PublishedClassifier(load_sc09(folder).to(device))
    model = from_pretrained(folder, device)
    if not isinstance(model, SequenceClassifier) or model.config.features is None:
        raise ModelError(
            f"model {spec!r} is a {model.config.task} of something else, expected a classifier of spoken words, "
            "such as digits-classifier.mel"
        )
    try:
        torchaudio()
    except ImportError as error:
        raise PipelineError(str(error)) from error
    return WordClassifier(model)


def hear(classifier: Classifier, samples: NDArray[np.float32], device: torch.device) -> Heard:
    """Return what a classifier makes of clips (N, L)."""
    features, logs = [], []
    with torch.inference_mode():
        for start in range(0, len(samples), BATCH):
            batch = torch.from_numpy(samples[start : start + BATCH]).to(device)
            vector, logits = classifier(batch)
            features.append(vector.double().cpu().numpy())
            logs.append(logits.double().log_softmax(dim=1).cpu().numpy())
    return Heard(np.concatenate(features), np.concatenate(logs))


def nothing_of(classifier: Classifier) -> int | None:
    """Return the number of the class of no word, or None."""
    return classifier.labels.index(NOTHING) if NOTHING in classifier.labels else None


def _architecture(folder: Path) -> object:
    """Return what a config says of its architecture, if it is one of no mamba-seq model."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("architecture") if isinstance(config, dict) else None
