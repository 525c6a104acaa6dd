"""What goes wrong with a model that a person named."""


class ModelError(ValueError):
    """A saved model cannot be found, read or fitted to its config."""


class UnknownModelError(ModelError):
    """A name that is neither a zoo model, nor a folder, nor on the hub."""


class HubError(ModelError):
    """A model could not be fetched from the hub, or published there."""
