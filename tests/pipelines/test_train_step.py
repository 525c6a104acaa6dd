"""The training step of a classifier: windows of long sequences, learning rates, seeds of dropout, rows of the log."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mamba_seq.config import MambaConfig, ModelConfig
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines.train.metrics import MetricsFile, read_metrics
from mamba_seq.pipelines.train.module import ClassifierTraining, learning_rate, step_seed
from mamba_seq.pipelines.train.recipe import OptimConfig
from mamba_seq.pipelines.train.run import main
from tests.pipelines.tiny_run import DROPOUT, metrics


def test_long_windows_are_trained_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        task="sequence-classification",
        backbone=MambaConfig(d_model=8, n_layer=1, d_state=4),
        vocab_size=5,
        labels=["a", "b", "c"],
        context=16,
    )
    training = ClassifierTraining(SequenceClassifier(config), OptimConfig(next_token_weight=0.5), 1, seed=0)
    training.read_in_windows(16, 0.75)
    monkeypatch.setattr(training, "log_row", lambda values: None)
    monkeypatch.setattr(training, "seed_step", lambda: None)
    tokens, labels = torch.randint(0, 4, (2, 48), dtype=torch.uint8), torch.tensor([2, 0])
    tokens[1, 16:32], tokens[1, 40:48] = 4, 4  # N, which does not count
    windows = tokens.view(6, 16).long()
    first, second = training.model(windows).view(2, 3, 3)
    second = (2 * second[0] + second[2]) / 3 * 1.5**0.75  # 24 bases fill one window and a half
    together = torch.stack([first.mean(dim=0) * 3**0.75, second])
    next_tokens = training.next_token(training.model.backbone(training.model.embedding(windows)))[:, :-1]
    expected = F.cross_entropy(together, labels)
    expected = expected + 0.5 * F.cross_entropy(next_tokens.flatten(0, 1), windows[:, 1:].flatten())
    torch.testing.assert_close(training.training_step((tokens, labels), 0), expected)
    whole = F.cross_entropy(training.model(tokens[:, :16].long()), labels)
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(training, "log_dict", lambda values, **_: logged.update(values))
    training.validation_step((tokens, labels), 0)
    training.validation_step((tokens[:, :16], labels), 0)
    torch.testing.assert_close(logged["val_48_loss"], F.cross_entropy(together, labels))
    torch.testing.assert_close(logged["val_16_loss"], whole)


def test_learning_rate_warms_up_and_decays() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, steps=110)
    rates = [learning_rate(step, optim) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_of_a_schedule_of_minutes() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, steps=1000, minutes=8.0)
    assert learning_rate(0, optim, 0.0) == pytest.approx(0.1)
    assert learning_rate(10, optim, 0.0) == pytest.approx(1.0)
    assert learning_rate(500, optim, 4.0) == pytest.approx(0.55)
    assert learning_rate(500, optim, 9.0) == pytest.approx(0.1)


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in range(100) for rank in (0, 1)}
    assert len(seeds) == 400
    assert max(seeds) < 2**32


def test_rows_of_the_log_belong_to_their_steps(whole: Path, recipe: str, tmp_path: Path) -> None:
    """Fewer rows are some of all rows, with the same values."""
    main(recipe, tmp_path / "run", [*DROPOUT, "--log_every=5"])
    training = [row for row in metrics(tmp_path / "run") if not row["name"].startswith("val_")]
    steps = {"0", "5", "10"}
    assert training == [r for r in metrics(whole) if r["step"] in steps and not r["name"].startswith("val_")]


def test_a_log_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsFile(path, 0)
    for step in range(3):
        log.log_metrics({"loss": 0.5, "epoch": 0.0}, step)
    path.write_text(path.read_text() + "1")
    assert read_metrics(path) == [(0, "loss", 0.5), (1, "loss", 0.5), (2, "loss", 0.5)]
    MetricsFile(path, 2).log_metrics({"loss": 0.25}, 2)
    assert read_metrics(path) == [(0, "loss", 0.5), (1, "loss", 0.5), (2, "loss", 0.25)]
    MetricsFile(path, 0).log_metrics({"length": 1_048_576, "loss": 1 / 3}, 0)
    assert path.read_text().split()[1:] == ["0,length,1048576", "0,loss,0.333333"]
