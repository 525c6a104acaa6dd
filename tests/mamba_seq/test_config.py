"""Configs refuse what makes no sense, and the public surface is what it says."""

import subprocess
import sys

import pytest

import mamba_seq
from mamba_seq import MambaConfig, ModelConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [("d_model", 0), ("n_layer", 0), ("d_state", 0), ("d_conv", 1), ("dt_rank", 0), ("dt_min", 0.0), ("norm", "batch")],
)
def test_bad_sizes_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*expected"):
        MambaConfig(**{"d_model": 8, "n_layer": 1, field: value})


def test_dt_rank_is_a_sixteenth_rounded_up() -> None:
    assert MambaConfig(d_model=40, n_layer=1).rank == 3
    assert MambaConfig(d_model=40, n_layer=1, dt_rank=7).rank == 7


@pytest.mark.parametrize(
    ("labels", "message"), [([], "labels has 0 names"), (["a"], "labels has 1 names"), (["a", "a"], "name twice")]
)
def test_labels_are_checked(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(
            task="sequence-classification",
            backbone=MambaConfig(d_model=8, n_layer=1),
            vocab_size=5,
            labels=labels,
        )


def test_public_surface() -> None:
    for name in mamba_seq.__all__:
        assert getattr(mamba_seq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mamba_seq.nothing


def test_importing_the_package_imports_no_torch() -> None:
    code = "import mamba_seq, sys; print(sorted({'torch', 'numpy', 'numba', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
