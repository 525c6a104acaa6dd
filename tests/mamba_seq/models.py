"""A small model of every task, and inputs for it."""

from typing import Any

import torch
from torch import Tensor

from mamba_seq import MambaConfig, ModelConfig
from mamba_seq.heads import MODELS, Model, SequenceModel

TASKS = tuple(MODELS)
SEQUENCE_TASKS = tuple(task for task, model in MODELS.items() if issubclass(model, SequenceModel))
POSITION_TASKS = tuple(task for task in TASKS if task not in SEQUENCE_TASKS)
LABELS = ["b", "a", "c"]
FEATURES = 4


def small_config(task: str, numbers: bool = False, **fields: Any) -> ModelConfig:
    backbone = MambaConfig(d_model=12, n_layer=2, d_state=5, ssm=fields.pop("ssm", "selective"))
    source = {"input_features": FEATURES} if numbers else {"vocab_size": 7}
    labels = [] if task == "language-model" else LABELS
    return ModelConfig(task=task, backbone=backbone, labels=labels, **source, **fields)


def small_model(task: str, numbers: bool = False, **fields: Any) -> Any:
    torch.manual_seed(1)
    model: Model = MODELS[task](small_config(task, numbers, **fields))
    if hasattr(model, "head"):
        torch.nn.init.normal_(model.head.bias)
    return model.eval()


def some_input(model: Model, *shape: int) -> Tensor:
    if model.config.input_features is None:
        return torch.randint(0, 7, shape)
    return torch.randn(*shape, FEATURES)


def inputs_of_every_task() -> list[tuple[str, bool]]:
    return [
        (task, numbers) for task in TASKS for numbers in (False, True) if not (task == "language-model" and numbers)
    ]
