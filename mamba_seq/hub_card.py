"""The card of a published model: metadata that the hub reads, in front of a text.

Cards that our training writes have both already; this fills in what one lacks, and writes a plain one where there is
none.
"""

import re
from typing import Any

from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.errors import ModelError

LIBRARY = "mamba-seq"


def plain_card(config: ModelConfig, name: str) -> str:
    """Return a card that says of a model what its config says.

    Args:
        config: of the model.
        name: of the model on the hub, owner/name.
    """
    backbone = config.backbone
    blocks = f"{backbone.n_layer} Mamba blocks" if isinstance(backbone, MambaConfig) else "U-Net of blocks (SaShiMi)"
    rows = {
        "task": config.task,
        "architecture": f"{blocks}, width {backbone.d_model}, state size {backbone.d_state}",
        "input": _input(config),
        "labels": ", ".join(config.labels) or "none",
        "trained on sequences of": f"{config.context:,} positions" if config.context else "a length it does not say",
        "written by": f"mamba-seq {config.mamba_seq_version}",
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    text = f"# {name}\n\n| | |\n|---|---|\n{table}\n\n```python\nimport mamba_seq\n\n"
    text += f'model = mamba_seq.from_pretrained("hub:{name}")\n```\n'
    return with_metadata(text, config)


def with_metadata(
    card: str, config: ModelConfig, *, library: str = LIBRARY, licence: str | None = None, generates_text: bool = False
) -> str:
    """Return the card with the fields that the hub sorts models by; those that are there stay.

    Args:
        card: text, with or without metadata in front.
        config: of the model.
        library: what loads it: "mamba-seq" or "transformers".
        licence: identifier such as "apache-2.0", in place of the card's; None keeps that.
        generates_text: it has a tokenizer, and is a language model.

    Raises:
        ModelError: when what stands in front is no YAML object.
    """
    import yaml

    front, text = _split(card)
    try:
        found = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        raise ModelError(f"the card README.md has metadata that cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"the card README.md has metadata that is no object: {front[:40]!r}")
    fields: dict[str, Any] = dict(found)
    fields.setdefault("library_name", library)
    if licence is not None:
        fields["license"] = licence
    if generates_text:
        fields.setdefault("pipeline_tag", "text-generation")
    tags = fields.get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    wanted = ["mamba", LIBRARY, config.task, config.alphabet, "audio" if config.codec else None]
    fields["tags"] = tags + [tag for tag in wanted if tag and tag not in tags]
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{text.lstrip()}"


def _split(card: str) -> tuple[str, str]:
    """Return the metadata in front of a card, which may be none, and its text."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", card, flags=re.DOTALL)
    return (match[1], card[match.end() :]) if match else ("", card)


def _input(config: ModelConfig) -> str:
    if config.input_features is not None:
        return f"{config.input_features} numbers at every position"
    what = config.alphabet or config.codec
    return f"{config.vocab_size} tokens" + (f" ({what})" if what else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
