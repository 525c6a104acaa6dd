"""A training run of a tiny classifier of DNA, for the tests of runs: its recipe, its genomes, and one that is whole.

The fixtures reach the tests through conftest.py. `whole` belongs to all of them: who changes a run copies it first.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = """
name: mamba-dna.tiny
summary: Tells three made-up species apart.
data_source: Drawn by a seed.
data_licence: None needed.
limits: Useless for anything but tests.
model: {{d_model: 8, n_layer: 2, d_state: 4}}
context: 96
data: {{root: {root}, lengths: [32, 64], batch_tokens: 512, validation_windows: 4}}
optim: {{lr: 0.01, warmup_steps: 2, steps: 12}}
evaluation: {{lengths: [60, 200], windows_per_class: [10, 4]}}
val_every: 4
log_every: 1
"""
DROPOUT = ["--model.dropout=0.3", "--optim.next_token_weight=0.5"]


@pytest.fixture(scope="session")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in nothing but composition."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("genomes")
    for label, gc in (("low", 0.2), ("middle", 0.5), ("rich", 0.8)):
        (root / label).mkdir()
        chances = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
        (root / label / "g.fa").write_text(">r\n" + "".join(rng.choice(list("ACGT"), 5000, p=chances)) + "\n")
    return root


@pytest.fixture
def recipe(genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The recipe's file; its runs fit a small baseline."""
    make_baseline_small(monkeypatch)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=genomes))
    return str(path)


@pytest.fixture(scope="session")
def whole(genomes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout that nothing interrupted."""
    from mamba_seq.pipelines.train.run import main

    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(RECIPE.format(root=genomes))
    with pytest.MonkeyPatch.context() as patch:
        make_baseline_small(patch)
        # as in the tests, or the sums round differently; a fixture of the session comes before that of conftest.py
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        main(str(folder / "tiny.yaml"), folder / "run", DROPOUT)
        torch.set_num_threads(threads)
    return folder / "run"


def make_baseline_small(patch: pytest.MonkeyPatch) -> None:
    """Fit at least 60 windows all the same, but 10 features instead of 2,080, which took longer than all the rest."""
    patch.setattr("mamba_seq.pipelines.train.finish.BASELINE_BASES", 1)
    patch.setattr("mamba_seq.pipelines.train.finish.K", 2)


def metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's log."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
