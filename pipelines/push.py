"""Publishing a saved model on the Hugging Face hub."""

import logging

from mamba_seq import hub, models_zoo
from mamba_seq.hub_card import LIBRARY, plain_card, with_metadata
from mamba_seq.interop import folder_kind
from mamba_seq.loading import open_model
from mamba_seq.pipelines.models import locate_model
from mamba_seq.saving import CARD_FILE

log = logging.getLogger("mamba_seq.pipelines")


def push(
    model: str, name: str, *, private: bool = False, licence: str | None = None, message: str | None = None
) -> str:
    """Publish the model `model` as `name`, after loading it once: a model that does not load is not published.

    Args:
        model: a zoo name, the folder of a saved model (of mamba-seq or of transformers) or a hub id.
        name: owner/name on the hub; made if it is not there.
        private: make it one that only its owner sees.
        licence: identifier such as "apache-2.0" for the card; None keeps the card's.
        message: of the commit.

    Returns:
        The address of the model.

    Raises:
        UnknownModelError: when there is no such model, or `name` is not of the form owner/name.
        ModelError: when it cannot be read.
        HubError: when the hub refuses, or cannot be reached.
    """
    hub.parse(name)
    folder = locate_model(model)
    loaded, _ = open_model(folder, name=model)
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else plain_card(loaded.config, name)
    card = with_metadata(
        text,
        loaded.config,
        library="transformers" if folder_kind(folder) == "transformers" else LIBRARY,
        licence=licence,
        generates_text=(folder / "tokenizer.json").is_file(),
    )
    if model in models_zoo.names():
        log.info("%s comes with mamba-seq: this makes a copy of it", model)
    return hub.push_folder(folder, name, card=card, private=private, message=message)
