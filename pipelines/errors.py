"""What goes wrong in a run for a reason that its user can mend."""


class PipelineError(Exception):
    """A run cannot go on, for a reason outside this package; the message says what to do."""


class OutputError(PipelineError):
    """Results cannot be written where they were asked for."""


class DeviceError(PipelineError):
    """The device that was asked for is not there."""


class RecipeError(PipelineError):
    """A training recipe asks for what cannot be."""


class ScoringError(PipelineError):
    """A model gave something that is not a score."""


class CheckError(PipelineError):
    """Two things that are to be compared do not compute the same."""


class RequestError(PipelineError):
    """What was asked for cannot be: a class that the model has not, a prompt that is longer than the clip."""
