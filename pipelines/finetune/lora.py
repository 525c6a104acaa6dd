"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: put in before training, merged into the weights at the
end.
"""

from typing import Any

from torch import nn

from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.finetune.recipe import LoraConfig


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Give the linear maps of the config adapters, in place; only these and what was trainable are trained.

    Raises:
        RecipeError: peft is not installed, or no linear map has such a name.
    """
    try:
        import peft
    except ImportError as error:
        raise RecipeError("tune is 'lora', which needs peft: pip install 'mamba-seq[lora]'") from error
    ends = tuple(f".{name}" for name in config.modules)
    found = [name for name, module in model.named_modules() if name.endswith(ends) and isinstance(module, nn.Linear)]
    if not found:
        raise RecipeError(
            f"lora.modules is {config.modules}, and no linear map of the model is called so; in_proj is one"
        )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=found, bias="none"
    )
    peft.inject_adapter_in_model(adapters, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained or ".lora_" in name


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to its weights and take it out, so that the model is a plain one again."""
    for name, module in list(model.named_modules()):
        layer: Any = module
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            layer.merge()
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad = True
