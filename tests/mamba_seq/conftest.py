"""Small models for the backbone's tests."""

from collections.abc import Callable, Iterator

import pytest
import torch

from mamba_seq import LanguageModel, MambaConfig, ModelConfig, SequenceClassifier
from tests.kernels.compare import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def config() -> MambaConfig:
    return MambaConfig(d_model=12, n_layer=2, d_state=5, d_conv=4)


@pytest.fixture
def make_classifier(config: MambaConfig) -> Callable[..., SequenceClassifier]:
    def make(pooling: str = "mean") -> SequenceClassifier:
        torch.manual_seed(1)
        model = SequenceClassifier(
            ModelConfig(
                task="sequence-classification",
                backbone=config,
                vocab_size=5,
                alphabet="dna",
                labels=["b", "a", "c"],
                context=64,
                pooling=pooling,
            )
        )
        return model.eval()

    return make


@pytest.fixture
def language_model(config: MambaConfig) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(ModelConfig(task="language-model", backbone=config, vocab_size=7)).eval()
