"""Training waveform models: a saved model at the end, killed runs that go on, checkpoints in parts, papers' recipes."""

import csv
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mamba_seq import LanguageModel, ModelError, from_pretrained, models_zoo
from mamba_seq.data_prep.audio_clips import AudioBatch
from mamba_seq.data_prep.errors import NoRecords
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train import checkpoint_files
from mamba_seq.pipelines.train.audio_finish import histogram
from mamba_seq.pipelines.train.audio_job import AudioJob
from mamba_seq.pipelines.train.audio_module import WaveformTraining
from mamba_seq.pipelines.train.checkpoint_files import has_checkpoint, whole_checkpoint, write_checkpoint
from mamba_seq.pipelines.train.recipe import AudioRecipe, OptimConfig, read_recipe
from mamba_seq.pipelines.train.run import main
from mamba_seq.pipelines.train.starting import begin_with, starting_weights

RECIPE = """
kind: audio
name: sashimi-mamba.tiny
summary: Hums two digits.
data_source: Drawn by a seed.
data_licence: None needed.
limits: Useless for anything but tests.
model: {{d_model: 8, n_layer: 1, d_state: 4, pool: [2, 2], dropout: 0.2}}
conditional: true
guidance: 1.5
data: {{roots: [{root}], sample_rate: 8000, length: 100, batch_size: 4, label_dropout: 0.3}}
optim: {{lr: 0.01, warmup_steps: 2, steps: 12}}
val_every: 4
log_every: 1
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sounds") / "digits"
    root.mkdir()
    rng = np.random.default_rng(0)
    for digit in (1, 3):
        for speaker in ("ann", "bob"):
            for n in (0, 5, 10, 11, 12):
                t = np.arange(rng.integers(60, 140)) / 8000
                x = 0.3 * np.sin(2 * math.pi * 300 * digit * t) + 0.01 * rng.standard_normal(len(t))
                soundfile.write(root / f"{digit}_{speaker}_{n}.wav", x, 8000)
    return root


@pytest.fixture
def recipe(digits: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=digits))
    return str(path)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(RECIPE.format(root=digits))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main(str(folder / "tiny.yaml"), folder / "run")
    torch.set_num_threads(threads)
    return folder / "run"


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(run: Path, whole: Path) -> None:
    assert metrics(run) == metrics(whole)
    expected = from_pretrained(whole / "model").state_dict()
    for name, tensor in from_pretrained(run / "model").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert (run / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()


def test_a_run_ends_in_a_saved_model(whole: Path) -> None:
    folder = whole / "model"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "record.json",
        "recipe.yaml",
        "splits.tsv",
        "curves.png",
    }
    model = from_pretrained(folder)
    config = model.config
    assert (config.codec, config.sample_rate, config.vocab_size) == ("mu-law-8bit-minmax", 8000, 256)
    assert (config.labels, config.context, config.tie_embeddings) == (["one", "three"], 100, False)
    assert (config.label_dropout, config.guidance) == (0.3, 1.5)
    record = json.loads((folder / "record.json").read_text())
    (row,) = record["results"]
    with (whole / "splits.tsv").open() as file:
        tests = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "test"]
    assert {row["file"] for row in tests} == {f"{digit}_{who}_0.wav" for digit in (1, 3) for who in ("ann", "bob")}
    clips = sum(math.ceil(int(row["frames"]) / 100) for row in tests)
    assert (row["source"], row["clips"]) == ("digits", clips)
    assert 0 < row["low"] <= row["bits"] <= row["high"] < 9
    card = (folder / "README.md").read_text()
    assert f"| digits | {clips} | 0.0 | {row['bits']:.3f} |" in card
    assert "It can be asked for: one, three. It was told no label for 30 % of the training clips" in card
    assert {row["name"] for row in metrics(whole)} == {"loss", "bits", "lr", "val_bits"}


def test_bits_per_sample_are_those_of_the_model(whole: Path, recipe: str) -> None:
    """Computed once more, clip by clip, without padding."""
    fields, _ = read_recipe(Path(recipe))
    job = AudioJob(fields)
    job.prepare()
    clips = job.data.evaluation_clips("test")
    model = from_pretrained(whole / "model")
    nats, plain, samples = 0.0, 0.0, 0
    frequency = histogram(job.data)
    assert frequency.min() > 0
    for clip in (clips[i] for i in range(len(clips))):
        levels = torch.from_numpy(clip.levels).long()[None]
        inputs = torch.cat([torch.tensor([[128]]), levels[:, :-1]], dim=1)
        with torch.no_grad():
            said = model(inputs, labels=torch.tensor([clip.label])).log_softmax(dim=-1)
        nats -= float(said.gather(2, levels[..., None]).sum())
        plain -= float(np.log(frequency[clip.levels]).sum())
        samples += levels.shape[1]
    (row,) = json.loads((whole / "evaluation.json").read_text())
    assert row["bits"] == pytest.approx(nats / samples / math.log(2), rel=1e-5)
    assert row["histogram"] == pytest.approx(plain / samples / math.log(2), rel=1e-5)


def test_label_dropout_may_begin_and_end(whole: Path, recipe: str) -> None:
    """No class is no parameter, so that weights with and without fit each other."""
    fields, _ = read_recipe(Path(recipe), ["--data.label_dropout=0", "--guidance=1"])
    job = AudioJob(fields)
    job.prepare()
    config = job.model_config()
    assert config.label_dropout == 0
    assert not begin_with(LanguageModel(config), starting_weights(str(whole / "model"), config))


def test_it_learns(recipe: str, tmp_path: Path) -> None:
    steps = ["--optim.steps=60", "--model.dropout=0", "--val_every=60", "--optim.lr=0.02"]
    main(recipe, tmp_path / "run", steps)
    bits = [float(row["value"]) for row in metrics(tmp_path / "run") if row["name"] == "bits"]
    assert bits[0] == pytest.approx(8, abs=0.2)
    assert np.mean(bits[-5:]) < 7


@pytest.mark.parametrize("part_mib", [None, 0.02])
@pytest.mark.parametrize(("where", "at"), [("training_step", 10), ("validation_step", 8)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    whole: Path,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    at: int,
    part_mib: float | None,
) -> None:
    step = getattr(WaveformTraining, where)

    def killed(self: WaveformTraining, *args: object) -> object:
        if self.global_step == at:
            raise MemoryError("killed")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WaveformTraining, where, killed)
        with pytest.raises(MemoryError, match="killed"):
            main(recipe, tmp_path / "parts", checkpoint_mib=part_mib)
    kept = list((tmp_path / "parts" / "checkpoints").iterdir())
    assert ([path.name for path in kept] == ["last.ckpt"]) == (part_mib is None)
    if part_mib is not None:
        assert len(kept) > 3
        assert max(path.stat().st_size for path in kept) <= 0.02 * 2**20
        # another machine: the parts are carried there
        shutil.copytree(tmp_path / "parts", tmp_path / "there")
        shutil.rmtree(tmp_path / "parts")
        shutil.move(tmp_path / "there", tmp_path / "parts")
    main(recipe, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", whole)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_the_command_trains_stops_and_goes_on(recipe: str, tmp_path: Path, run: Any, whole: Path) -> None:
    stopped = run("train", recipe, "-o", tmp_path / "run", "--max-minutes", "0.00001", "--checkpoint-mib", "0.02")
    assert stopped.code == 0, stopped.err
    assert stopped.out == f"{tmp_path / 'run'}\n"
    assert (tmp_path / "run" / "checkpoints" / "last.json").is_file()
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    done = run("train", recipe, "-o", tmp_path / "run", "--checkpoint-mib", "0.02")
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'run' / 'model'}\n"
    rows = [row for row in metrics(tmp_path / "run") if row["name"] == "bits"]
    assert rows == [row for row in metrics(whole) if row["name"] == "bits"]
    assert run("train", recipe, "-o", tmp_path / "run").code == 1


def test_a_process_that_is_killed_goes_on(recipe: str, tmp_path: Path) -> None:
    """By SIGKILL, wherever it is: what it had written is enough."""
    arguments = [recipe, "-o", str(tmp_path / "run"), "--checkpoint-mib", "0.02", "--val_every=2", "--optim.steps=400"]
    code = f"from mamba_seq.pipelines.cli import main; main(['--threads', '1', 'train', *{arguments!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        parts = tmp_path / "run" / "checkpoints" / "last.json"
        until = time.monotonic() + 60
        while not parts.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert parts.exists()
    steps = ["--val_every=2", "--optim.steps=400"]
    assert main(recipe, tmp_path / "run", steps, max_minutes=1e-5) == tmp_path / "run"
    logged = [int(row["step"]) for row in metrics(tmp_path / "run") if row["name"] == "bits"]
    assert logged == list(range(len(logged)))
    assert 2 < len(logged) < 400


@pytest.mark.parametrize("kill", ["part", "list"])
def test_a_kill_while_parts_are_written_keeps_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint(path, lambda file: file.write_bytes(b"old" * 100), 64)
    written: list[Path] = []
    write = checkpoint_files.write_whole

    def killed(file: Path, data: bytes) -> None:
        written.append(file)
        if (len(written) == 3 and kill == "part") or file.suffix == ".json":
            raise MemoryError("killed")
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_whole", killed)
        with pytest.raises(MemoryError):
            write_checkpoint(path, lambda file: file.write_bytes(b"new" * 100), 64)
    with whole_checkpoint(path) as file:
        assert file.read_bytes() == b"old" * 100
    write_checkpoint(path, lambda file: file.write_bytes(b"newer" * 100), 64)
    with whole_checkpoint(path) as file:
        assert file.read_bytes() == b"newer" * 100
    names = [part["name"] for part in json.loads(path.with_suffix(".json").read_text())["parts"]]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([*names, "last.json"])
    write_checkpoint(path, lambda file: file.write_bytes(b"one"))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_parts_that_are_not_all_there(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    assert not has_checkpoint(path)
    write_checkpoint(path, lambda file: file.write_bytes(bytes(range(250))), 100)
    assert has_checkpoint(path)
    last = sorted(tmp_path.glob("last.*.002"))[0]
    data = last.read_bytes()

    def refused() -> str:
        with pytest.raises(ModelError) as error, whole_checkpoint(path):
            pass
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        return str(error.value)

    last.write_bytes(data[:-1])
    assert "has 49 bytes, expected 50 bytes; copy all parts again" in refused()
    last.write_bytes(data[:-1] + b"x")
    assert "a part is damaged" in refused()
    last.unlink()
    assert "is missing, expected 50 bytes" in refused()
    path.with_suffix(".json").write_text("{}")
    assert "is no list of a checkpoint's parts" in refused()


def test_what_is_filled_up_counts_for_nothing(recipe: str) -> None:
    fields, _ = read_recipe(Path(recipe))
    job = AudioJob(fields)
    job.prepare()
    training = job.training(LanguageModel(job.model_config()).eval())
    batch = job.data.training_batches().batch(0)
    loss = training._loss(batch)
    noise = torch.randint(0, 256, batch.levels.shape, dtype=torch.uint8)
    inside = torch.arange(100) < batch.lengths[:, None]
    assert not inside.all()
    other = AudioBatch(torch.where(inside, batch.levels, noise), batch.lengths, batch.labels)
    assert torch.equal(training._loss(other), loss)


def test_mistakes_write_nothing(recipe: str, tmp_path: Path) -> None:
    mistakes: dict[str, tuple[type[Exception], str]] = {
        "--data.roots=[nowhere]": (ValueError, "nowhere is not a folder"),
        "--data.length=0": (RecipeError, r"data\.length is 0"),
        "--data.codec=vinyl": (RecipeError, "unknown codec 'vinyl'"),
        "--data.labels=[two]": (ValueError, "no sound file is of class 'two'; there are one, three"),
        "--data.layout=folder": (ValueError, "does not say which of its files are for the test"),
        "--optim.next_token_weight=1": (RecipeError, "next_token_weight is 1"),
        "--data.label_dropout=1": (RecipeError, r"data\.label_dropout is 1"),
        "--conditional=false": (RecipeError, r"data\.label_dropout is 0\.3, expected 0: the recipe is not conditional"),
        "--guidance=-1": (RecipeError, "guidance is -1"),
        "--data.label_dropout=0": (RecipeError, "guidance is 1.5, expected 1: without data.label_dropout"),
        "--gradient_checkpointing=-1": (RecipeError, "gradient_checkpointing is -1"),
        "--model.pool=[1]": (RecipeError, r"pool is \[1\], expected factors of at least 2"),
    }
    for override, (error, message) in mistakes.items():
        with pytest.raises(error, match=message):
            main(recipe, tmp_path / "run", override.split())
    for split in ("validation", "test"):
        with pytest.raises(RecipeError, match=f"no sound file is held out for {split}.*data.{split}_fraction above 0"):
            main(recipe, tmp_path / "run", ["--data.split=file", f"--data.{split}_fraction=0"])
    with pytest.raises(RecipeError, match="its sound files have no classes"):
        main(recipe, tmp_path / "run", ["--data.layout=folder", "--data.split=file"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoRecords, match="has no sound file"):
        main(recipe, tmp_path / "run", [f"--data.roots=[{empty}]"])
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_files(recipe: str, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    root = f"--data.roots=[{tmp_path / 'digits'}]"
    run = main(recipe, tmp_path / "run", [root], max_minutes=1e-5)
    (tmp_path / "digits" / "1_ann_10.wav").unlink()
    with pytest.raises(ModelError, match="the sound files have changed since"):
        main(recipe, run, [root])


def test_recipes_of_other_kinds(recipe: str, tmp_path: Path) -> None:
    fields, text = read_recipe(
        Path(recipe), ["--model.ssm=[time-invariant,complex,selective]", "--model.n_layer=[1,2,3]"]
    )
    assert isinstance(fields, AudioRecipe)
    assert fields.model.kinds_of_levels == ["time-invariant", "complex", "selective"]
    assert fields.model.layers_of_levels == [1, 2, 3]
    levels = ["--model.ssm=[time-invariant,complex,selective]", "--model.block=[s4,mamba,mamba]"]
    assert read_recipe(Path(recipe), levels)[0].model.blocks_of_levels == ["s4", "mamba", "mamba"]
    assert "kind: audio" in text
    (tmp_path / "smell.yaml").write_text("kind: smell\nname: x\n")
    with pytest.raises(RecipeError, match="is a recipe of kind 'smell', expected dna or audio"):
        read_recipe(tmp_path / "smell.yaml")


@pytest.mark.parametrize(
    ("name", "published", "ours", "blocks"),
    [
        ("sashimi-mamba.sc09", 6.1e6, 6_259_968, 40),
        ("sashimi-mamba.sc09-large", 24.3e6, 24_865_152, 75),
        ("sashimi-mamba.youtubemix", 3.5e6, 3_558_912, 15),
    ],
)
def test_parameters_of_the_papers_models(name: str, published: float, ours: int, blocks: int) -> None:
    """The published counts are not met exactly: which pools and norms those models had is not known."""
    fields, _ = read_recipe(models_zoo.recipe_path(name))
    model = LanguageModel(AudioJob(fields).model_config())
    assert sum(p.numel() for p in model.parameters()) == ours
    assert ours == pytest.approx(published, rel=0.03)
    assert sum(hasattr(module, "mixer") for module in model.modules()) == blocks
    assert fields.optim == OptimConfig(
        lr=2e-3, min_lr=1e-5, warmup_steps=20000, steps=200000, grad_clip=1.0 if "youtube" in name else 0.1
    )
