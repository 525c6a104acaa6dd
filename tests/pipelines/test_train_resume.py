"""Training runs that are killed or stopped, and go on as if nothing had been."""

import json
import signal
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from mamba_seq import ModelError, from_pretrained
from mamba_seq.pipelines.train.callbacks import StopAfter
from mamba_seq.pipelines.train.module import ClassifierTraining
from mamba_seq.pipelines.train.run import main
from tests.pipelines.tiny_run import DROPOUT, metrics


@pytest.mark.parametrize(("where", "at"), [("training_step", 10), ("training_step", 1), ("validation_step", 8)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int
) -> None:
    step = getattr(ClassifierTraining, where)

    def killed(self: ClassifierTraining, *args: object) -> object:
        if self.global_step == at:
            raise MemoryError("killed")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTraining, where, killed)
        with pytest.raises(MemoryError, match="killed"):
            main(recipe, tmp_path / "parts", DROPOUT)
    assert not (tmp_path / "parts" / "model").exists()
    torch.rand(3)  # what a process draws besides changes nothing
    main(recipe, tmp_path / "parts", DROPOUT)
    assert_same_run(tmp_path / "parts", whole)


@pytest.mark.parametrize("at", [4, 6])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def stop(self: StopAfter, trainer: Trainer, *args: object) -> None:
        trainer.should_stop = trainer.global_step == at

    with monkeypatch.context() as patch:
        patch.setattr(StopAfter, "on_train_batch_end", stop)
        assert main(recipe, tmp_path / "parts", DROPOUT, max_minutes=1e3) == tmp_path / "parts"
    assert torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == at
    main(recipe, tmp_path / "parts", DROPOUT)
    assert_same_run(tmp_path / "parts", whole, validated_at=at - 1)


def assert_same_run(run: Path, whole: Path, validated_at: int | None = None) -> None:
    """Compare logs, weights and evaluation; where a run was stopped it was validated as well."""
    expected_rows = metrics(whole)
    if not any(row["name"].startswith("val_") and row["step"] == str(validated_at) for row in expected_rows):
        extra = [row for row in metrics(run) if row["name"].startswith("val_") and row["step"] == str(validated_at)]
        assert len(extra) == (0 if validated_at is None else 4)
        expected_rows = sorted(expected_rows + extra, key=lambda row: int(row["step"]))
    assert metrics(run) == expected_rows
    expected = from_pretrained(whole / "model").state_dict()
    for name, tensor in from_pretrained(run / "model").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert json.loads((run / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())


def test_max_minutes_stops_with_a_checkpoint(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    assert run == tmp_path / "run"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert main(recipe, run) == run / "model"


def test_minutes_of_all_calls_count(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["Checkpoint"]["minutes"] += 40
    torch.save(checkpoint, path)
    folder = main(recipe, run)
    assert 40 < json.loads((folder / "record.json").read_text())["minutes"] < 45


def test_ctrl_c_is_a_keyboard_interrupt(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ClassifierTraining, *args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassifierTraining, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        main(recipe, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_kill_while_the_checkpoint_is_written_keeps_the_old_one(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()

    def half(self: Trainer, path: Path) -> None:
        path.write_bytes(before[:100])
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", half)
        with pytest.raises(MemoryError):
            main(recipe, run)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert main(recipe, run) == run / "model"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_says_what_to_do(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"last\.ckpt cannot be read as a checkpoint: .*; put a copy of it back, or"):
        main(recipe, run)


@pytest.mark.parametrize("name", ["baseline.json", "evaluation.json", "metrics.csv", "recipe.yaml", "splits.tsv"])
def test_a_kill_while_a_file_is_written_leaves_no_half_of_it(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write = Path.write_bytes

    def killed(self: Path, data: bytes) -> int:
        if name in self.name:
            write(self, data[: len(data) // 2])
            raise MemoryError("killed")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(MemoryError):
            main(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()
    assert main(recipe, tmp_path / "run") == tmp_path / "run" / "model"
