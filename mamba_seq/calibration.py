"""Probabilities that mean what they say: the calibration of a classifier, measured on held-out data.

A model that averages what it saw in many windows does not grow surer with their number, though its answer grows more
often right. The calibrated probabilities of a record are therefore

    softmax(s log p),    s = max(1, n / context) ** growth / temperature

for the averaged probabilities p, and n bases seen: one temperature (Guo et al., ICML 2017) and the power of the number
of windows that evidence grows with, 0 for none, 1 as if windows were independent. Which class is the most probable
stays as it is.

The same data tell how probable the best class of a known record is. What is less probable than for all but a stated
part of them is called novel: of another class than those the model knows.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(kw_only=True)
class Calibration:
    """How a classifier's scores become probabilities; part of its `config.json`.

    Raises:
        ValueError: for values out of range, naming the field.
    """

    temperature: float
    """Divides the log-probabilities of one window; above 1 it makes a model less sure."""
    growth: float
    """The power of the number of windows that they are multiplied by, 0 to 1."""
    context: int
    """Bases that count as one window."""
    windows: int
    """Held-out windows, of all lengths, that temperature and growth were fitted on."""
    bases: list[int] = dataclasses.field(default_factory=list)
    """Bases seen of a record, rising, that the thresholds of `novel` were measured at."""
    novel: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """For each part of known records that may be called novel, such as "0.05", the probabilities of the best class
    below which a record is, one for each of `bases`."""
    ece: float | None = None
    """Expected calibration error on other held-out windows, all lengths weighted alike; None when not measured."""
    ece_uncalibrated: float | None = None
    """The same without the calibration."""

    def __post_init__(self) -> None:
        thresholds_fit = all(_fits(rate, values, self.bases) for rate, values in self.novel.items())
        checks = {
            "temperature": (self.temperature, 0 < self.temperature < math.inf, "a number above 0"),
            "growth": (self.growth, 0 <= self.growth <= 1, "0 to 1"),
            "context": (self.context, self.context >= 1, "at least 1"),
            "bases": (self.bases, self.bases == sorted(set(self.bases)), "rising numbers"),
            "novel": (self.novel, thresholds_fit, "by rates between 0 and 1, a probability for each of bases"),
        }
        for name, (value, right, expected) in checks.items():
            if not right:
                raise ValueError(f"calibration.{name} is {value!r}, expected {expected}")

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Calibration":
        """Make one of what `config.json` holds.

        Raises:
            ValueError: for fields that are missing, unknown, of another type or out of range.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"calibration cannot be read: {error}") from error

    def sharpness(self, bases: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return s for records of which so many bases were seen, of any shape."""
        return np.maximum(1.0, np.asarray(bases) / self.context) ** self.growth / self.temperature

    def apply(self, probabilities: NDArray[np.float64], bases: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return calibrated probabilities.

        Args:
            probabilities: averaged over windows, (..., labels).
            bases: seen of each record, (...).
        """
        with np.errstate(divide="ignore"):  # log 0 is -inf, and stays 0
            scaled = np.log(probabilities) * self.sharpness(bases)[..., None]
        unnormalised = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        return unnormalised / unnormalised.sum(axis=-1, keepdims=True)

    def threshold(self, rate: float, bases: float) -> float:
        """Return below which probability of its best class a record is novel, interpolated over the log of `bases`.

        Args:
            rate: part of known records that are called novel; one of `rates`.
            bases: seen of the record.
        """
        thresholds = next(values for key, values in self.novel.items() if float(key) == rate)
        return float(np.interp(math.log(max(bases, 1)), np.log(self.bases), thresholds))

    @property
    def rates(self) -> list[float]:
        """The rates that there are thresholds for, rising."""
        return sorted(map(float, self.novel))


def _fits(rate: str, thresholds: list[float], bases: list[int]) -> bool:
    try:
        part = float(rate)
    except ValueError:
        return False
    return 0 < part < 1 and len(thresholds) == len(bases) > 0 and all(0 <= value <= 1 for value in thresholds)
