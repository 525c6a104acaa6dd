"""Calibrated probabilities and thresholds, and what a config refuses of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamba_seq.calibration import Calibration
from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.errors import ModelError

GOOD = {
    "temperature": 2.0,
    "growth": 0.5,
    "context": 100,
    "windows": 300,
    "bases": [100, 10_000],
    "novel": {"0.05": [0.3, 0.7], "0.01": [0.2, 0.4]},
}


def test_probabilities_are_sharpened_by_windows_and_flattened_by_temperature() -> None:
    calibration = Calibration(**GOOD)
    p = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    found = calibration.apply(p, np.array([50.0, 1600.0, 100.0]))
    for row, power in ((0, 0.5), (1, 2.0)):
        np.testing.assert_allclose(found[row], p[row] ** power / (p[row] ** power).sum(), rtol=1e-12)
    assert found[2].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(calibration.apply(p[0], 1600.0), found[1])


def test_threshold_is_interpolated_over_the_log_of_the_bases() -> None:
    calibration = Calibration(**GOOD)
    assert calibration.rates == [0.01, 0.05]
    for bases, expected in ((1, 0.3), (100, 0.3), (1000, 0.5), (10_000, 0.7), (10**8, 0.7)):
        assert calibration.threshold(0.05, bases) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1),
        ("growth", 1.1),
        ("context", 0),
        ("bases", [10_000, 100]),
        ("novel", {"0.05": [0.3]}),
        ("novel", {"0.05": [0.3, 1.2]}),
        ("novel", {"x": [0.3, 0.7]}),
        ("temperature", "2"),
        ("unknown", 1),
    ],
)
def test_refusals(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field if field not in ("unknown",) and value != "2" else "cannot be read"):
        Calibration.from_fields({**GOOD, field: value})


def test_a_config_keeps_it(tmp_path: Path) -> None:
    config = ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=8, n_layer=1),
        vocab_size=5,
        labels=["a", "b"],
        calibration=dataclasses.asdict(Calibration(**GOOD)),
        taxonomy={"a": "1:S:A", "b": "2:S:B"},
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert ModelConfig.from_json_file(path) == config
    path.write_text(config.to_json().replace('"growth": 0.5', '"growth": 5'))
    with pytest.raises(ModelError, match=r"calibration.growth is 5, expected 0 to 1"):
        ModelConfig.from_json_file(path)
