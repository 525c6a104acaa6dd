"""What a run starts from: the weights of a saved model, all of them, or a language model's below a new head."""

import dataclasses
import json
from pathlib import Path

from torch import Tensor

from mamba_seq.config import ModelConfig
from mamba_seq.errors import ModelError
from mamba_seq.heads import Model
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.models import locate_model

NOT_OF_THE_WEIGHTS = {
    *("context", "max_windows", "calibration", "taxonomy", "mamba_seq_version"),  # how it is read, and by what
    *("label_dropout", "guidance"),  # no class is no parameter
}
"""Fields of a config that may differ."""
NOT_OF_THE_BLOCKS = {"dropout", "residual_in_fp32", "dt_min", "dt_max"}
"""The same of a backbone's config."""
OF_THE_HEAD = {"task", "labels", "pooling", "complement", "strand", "tie_embeddings", "target_mean", "target_scale"}
"""Fields of a config that may differ as well where a language model's embedding and backbone are taken alone."""
TAKEN = ("embedding.", "backbone.")


def starting_weights(spec: str, config: ModelConfig) -> dict[str, Tensor]:
    """Return the weights that a run begins with, by the names of the recipe's model.

    Args:
        spec: a zoo name, the folder of a saved model, or a hub id.
        config: of the recipe's model. Where that is of another task, a language model gives it embedding and backbone.

    Raises:
        UnknownModelError: when there is no such model.
        ModelError: when it is of other sizes, tokens or labels than the recipe's.
    """
    saved = from_pretrained(locate_model(spec))
    pretrained = saved.config.task == "language-model" != config.task
    different = _differences(config, saved.config, NOT_OF_THE_WEIGHTS | (OF_THE_HEAD if pretrained else set()))
    if different:
        raise ModelError(
            f"start_from {spec} is another model than the recipe's: {', '.join(different)}; change one of the two"
        )
    return {name: tensor for name, tensor in saved.state_dict().items() if not pretrained or name.startswith(TAKEN)}


def begin_with(model: Model, weights: dict[str, Tensor]) -> list[str]:
    """Fill a new model with the weights that it starts from; return which of its parts stay new."""
    fresh = model.state_dict()
    model.load_state_dict({**fresh, **weights})
    return sorted({name.split(".")[0] for name in fresh if name not in weights})


def described(spec: str | None, task: str) -> str | None:
    """Say what a run of a task started from, for its card: folders have no place there, names have.

    Args:
        spec: as in `starting_weights`, of a model that is there; None for a run from random weights.
        task: of the recipe's model.
    """
    if spec is None:
        return None
    folder = locate_model(spec)
    theirs = ModelConfig.from_json_file(folder / "config.json").task
    record = folder / "record.json"
    name = json.loads(record.read_text(encoding="utf-8")).get("name") if record.is_file() else None
    if name is None and not Path(spec).exists():
        name = spec  # a hub id
    if theirs == "language-model" != task:
        return (
            f"the language model {f'`{name}`' if name else 'of an earlier run'}: its embedding and blocks; a new head"
        )
    return "an earlier run's weights" + (f" (`{name}`)" if name else "")


def _differences(ours: ModelConfig, theirs: ModelConfig, ignored: set[str]) -> list[str]:
    """Say field by field what `theirs` has instead of what `ours` has."""
    found = []
    for field in dataclasses.fields(ModelConfig):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "backbone" and type(mine) is type(other):
            for each in dataclasses.fields(mine):
                a, b = getattr(mine, each.name), getattr(other, each.name)
                if each.name not in NOT_OF_THE_BLOCKS and a != b:
                    found.append(f"{each.name} {b} instead of {a}")
        elif field.name not in ignored and mine != other:
            found.append(f"{field.name} {other} instead of {mine}")
    return found
