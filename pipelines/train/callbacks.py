"""What happens beside the steps of a training run: checkpoints, and an end after some minutes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mamba_seq.pipelines.train.checkpoint_files import write_checkpoint


class Checkpoint(Callback):
    """Keeps the newest checkpoint, written after every validation, so that going on repeats and misses none.

    It is written beside the old one and renamed: a run that is killed while it writes keeps the old one. (Lightning's
    own callback writes to the temporary folder and moves, which is a copy where that lies on another disk.)

    Args:
        path: of the one file.
        part_bytes: split it into files of at most so many bytes.
    """

    def __init__(self, path: Path, part_bytes: int | None = None) -> None:
        self.path = path
        self.part_bytes = part_bytes
        self._before = 0.0
        self._started = time.monotonic()

    @property
    def minutes(self) -> float:
        """Minutes of training up to now, those of the calls before this one included."""
        return (self._before + time.monotonic() - self._started) / 60

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Write the checkpoint of this step."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint, whole or not at all."""
        write_checkpoint(self.path, trainer.save_checkpoint, self.part_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps of this callback."""
        return {"minutes": self.minutes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what the checkpoint kept."""
        self._before = 60 * state_dict["minutes"]
        self._started = time.monotonic()


class StopAfter(Callback):
    """Ends training after some minutes; Lightning's own timer enters the checkpoint and is missed in a later run.

    Args:
        minutes: how many.
        passed: gives the minutes so far; by default those since now, of this call alone.
    """

    def __init__(self, minutes: float, passed: Callable[[], float] | None = None) -> None:
        started = time.monotonic()
        self._minutes = minutes
        self._of_all_calls = passed is not None
        self._passed = passed if passed is not None else lambda: (time.monotonic() - started) / 60

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Take no step more in a run that was killed after its end: what is measured already is of these weights."""
        if self._of_all_calls and self._passed() >= self._minutes:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop after the step that passes the end."""
        if self._passed() >= self._minutes:
            trainer.should_stop = True
