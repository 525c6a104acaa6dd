"""Models: a backbone with an embedding in front and a head behind it, one for every task of `ModelConfig`.

    task                      model                  outputs                       loss
    sequence-classification   SequenceClassifier     (B, labels) logits            cross-entropy
    multi-label               MultiLabelClassifier   (B, labels) logits            binary cross-entropy
    sequence-regression       SequenceRegressor      (B, targets)                  mean squared error
    token-classification      TokenClassifier        (B, L, labels) logits         cross-entropy
    token-regression          TokenRegressor         (B, L, targets)               mean squared error
    ctc                       CTCModel               (B, L, 1 + labels) logits     CTC
    language-model            LanguageModel          (B, L, V) logits              cross-entropy of the next token

The input is tokens (B, L) or, with `input_features`, numbers (B, L, F). Each model has the three forms of the backbone:
whole sequence, chunk after chunk with the state carried, and `step`; padded and packed batches; and a `loss`. With S
packed sequences, "sequence" models give (S, ...) and the others (1, L, ...).
"""

from mamba_seq.heads.base import Model
from mamba_seq.heads.ctc import CTCModel
from mamba_seq.heads.language_model import LanguageModel
from mamba_seq.heads.sequence import (
    MultiLabelClassifier,
    SequenceClassifier,
    SequenceModel,
    SequenceRegressor,
    SequenceState,
)
from mamba_seq.heads.tokens import TokenClassifier, TokenModel, TokenRegressor

__all__ = [
    "MODELS",
    "CTCModel",
    "LanguageModel",
    "Model",
    "MultiLabelClassifier",
    "SequenceClassifier",
    "SequenceModel",
    "SequenceRegressor",
    "SequenceState",
    "TokenClassifier",
    "TokenModel",
    "TokenRegressor",
]

MODELS: dict[str, type[Model]] = {
    "sequence-classification": SequenceClassifier,
    "multi-label": MultiLabelClassifier,
    "sequence-regression": SequenceRegressor,
    "token-classification": TokenClassifier,
    "token-regression": TokenRegressor,
    "ctc": CTCModel,
    "language-model": LanguageModel,
}
"""The model class of each task of `ModelConfig`."""
