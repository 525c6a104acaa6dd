"""Training a classifier of spoken words: a saved model that evaluate takes, runs that go on, mistakes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mamba_seq import from_pretrained
from mamba_seq.data_prep.errors import DataError
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.run import main
from mamba_seq.pipelines.train.word_module import hide

pytest.importorskip("torchaudio")
RECIPE = """
kind: words
name: words.tiny
summary: Tells two tones apart.
data_source: Drawn by a seed.
data_licence: None needed.
limits: Useless for anything but tests.
model: {{d_model: 8, n_layer: 1, d_state: 4}}
data:
  roots: [{root}]
  length: 2000
  features: log-mel-8band-12.5ms-3600hz
  batch_size: 8
  split: file
  test_files: ["*/[01].wav"]
  validation_files: ["*/2.wav"]
optim: {{lr: 0.01, warmup_steps: 2, steps: 6}}
val_every: 3
log_every: 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for word, pitch in (("low", 300), ("high", 1500)):
        (tmp_path / "tones" / word).mkdir(parents=True)
        for n in range(6):
            t = np.arange(rng.integers(900, 2300)) / 16000
            soundfile.write(tmp_path / "tones" / word / f"{n}.wav", 0.3 * np.sin(2 * math.pi * pitch * t), 16000)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=tmp_path / "tones"))
    return str(path)


def test_a_run_ends_in_a_classifier_that_evaluate_takes(recipe: str, tmp_path: Path, run: Any) -> None:
    stopped = run("train", recipe, "-o", tmp_path / "run", "--max-minutes", "0.00001")
    assert stopped.out == f"{tmp_path / 'run'}\n", stopped.err
    done = run("train", recipe, "-o", tmp_path / "run")
    assert done.out == f"{tmp_path / 'run' / 'model'}\n", done.err
    folder = tmp_path / "run" / "model"
    assert {path.name for path in folder.iterdir()} == {
        *["README.md", "config.json", "model.safetensors", "record.json"],
        *["recipe.yaml", "splits.tsv", "curves.png", "confusion.png"],
    }
    whole = main(recipe, tmp_path / "whole")
    for name, tensor in from_pretrained(whole).state_dict().items():
        assert torch.equal(tensor, from_pretrained(folder).state_dict()[name]), name
    config = from_pretrained(folder).config
    assert (config.labels, config.sample_rate, config.context) == (["high", "low", "none"], 16000, 11)
    assert (config.features, config.input_features) == ("log-mel-8band-12.5ms-3600hz", 8)
    record = json.loads((folder / "record.json").read_text())
    assert [(row["source"], row["clips"]) for row in record["results"]] == [("tones", 4), ("no word", 500)]
    card = (folder / "README.md").read_text()
    assert f"| tones | 4 | {record['results'][0]['accuracy']:.4f} |" in card
    assert "\n| low |" in card
    root = tmp_path / "tones"
    found = run("evaluate", root, "--real", root, "-m", folder)
    assert found.code == 0, found.err
    rows = {row[0]: row for row in found.rows}
    assert float(rows["fid"][1]) == pytest.approx(0, abs=1e-3)
    assert rows["agreement"][1] == rows["agreement"][5]


def test_hidden_frames_and_bands(recipe: str) -> None:
    torch.manual_seed(0)
    frames = torch.randn(200, 80, 40)
    assert torch.equal(hide(frames, 0.0), frames)
    changed = (hide(frames, 1.0) != frames).float()
    assert changed.amax(dim=(1, 2)).all()
    assert (changed.mean(dim=2) == 1).sum(dim=1).max() <= 14
    assert 0.1 < changed.mean() < 0.25


def test_mistakes_write_nothing(recipe: str, tmp_path: Path) -> None:
    for override, message in {
        "--data.features=mel": "unknown features 'mel'",
        "--masked=2": "masked is 2",
        "--optim.next_token_weight=1": "next_token_weight is 1",
        "--data.validation_fraction=1": "data.validation_fraction is 1",
    }.items():
        with pytest.raises(RecipeError, match=message):
            main(recipe, tmp_path / "run", [override])
    with pytest.raises(DataError, match="the words of the recordings are low"):
        main(recipe, tmp_path / "run", ["--data.labels=[low]"])
    with pytest.raises(DataError, match="no sound file is of class 'loud'"):
        main(recipe, tmp_path / "run", ["--data.labels=[low, loud]"])
    none = ["--data.test_files=[]", "--data.test_fraction=0"]
    with pytest.raises(RecipeError, match="no recording is held out for test"):
        main(recipe, tmp_path / "run", none)
    assert not (tmp_path / "run").exists()
