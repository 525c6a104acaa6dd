"""`mamba-seq evaluate` on folders of sound: the table, the classifier that comes with it, likelihoods, bad input."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mamba_seq import LanguageModel, ModelConfig, SaShiMiConfig, models_zoo
from mamba_seq.data_prep.words import NOTHING
from mamba_seq.pipelines.speech import classifier as classifiers
from mamba_seq.pipelines.speech import clips as clip_files
from mamba_seq.pipelines.speech.measure import measure

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CPU = torch.device("cpu")
NAME = "digits-classifier.mel"


class Pitches:
    """Hears a tone of (i + 1) 200 Hz as the label i, and nothing as no word."""

    sample_rate, length = 8000, 400

    def __init__(self) -> None:
        self.labels = ["one", "two", NOTHING]

    def __call__(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = samples.double()
        t = torch.arange(self.length, dtype=torch.float64) / self.sample_rate
        waves = torch.stack([torch.exp(2j * math.pi * hertz * t) for hertz in (200.0, 400.0)])
        power = (x.to(waves.dtype) @ waves.T).abs() / self.length
        return power, torch.cat([20 * power, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)


@pytest.fixture
def pitches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "load_classifier", lambda spec, device: Pitches())


def write(path: Path, pitch: float, seed: int, length: int = 400) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    t = np.arange(length) / 8000
    soundfile.write(path, 0.4 * np.sin(2 * math.pi * pitch * t) + 0.02 * rng.standard_normal(length), 8000)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Five clips asked to be one and two, of which one is the other and one is silent; ten recordings."""
    made, real = tmp_path / "made", tmp_path / "real"
    rows = [
        ("a.wav", "one", 200),
        ("b.wav", "one", 200),
        ("c.wav", "two", 400),
        ("d.wav", "two", 200),
        ("e.wav", "two", 0),
    ]
    for seed, (name, _, pitch) in enumerate(rows):
        write(made / name, pitch, seed, 400 if seed else 300)
    (made / "clips.tsv").write_text("file\tlabel\tseed\n" + "".join(f"{n}\t{label}\t0\n" for n, label, _ in rows))
    for seed in range(10):
        write(real / ("one", "two")[seed % 2] / f"{seed}.wav", 200 * (1 + seed % 2), 100 + seed)
    return made, real


@pytest.mark.usefixtures("pitches")
def test_golden_table(folders: tuple[Path, Path], golden: Any) -> None:
    made, real = folders
    golden("speech.tsv", "evaluate", made, "--real", real, "-m", NAME)


@pytest.mark.usefixtures("pitches")
def test_json_summary_and_repeatability(folders: tuple[Path, Path], tmp_path: Path, run: Any) -> None:
    made, real = folders
    result = run("evaluate", made, "--real", real, "--json", tmp_path / "all.json", "--seed", 3)
    assert result.code == 0, result.err
    assert "fid " in result.err
    assert "agreement 0.667 (too few for an interval, 5 clips" in result.err
    report = json.loads((tmp_path / "all.json").read_text())
    assert (report["model"], report["clips"], report["recordings"], report["seed"]) == (NAME, 5, 10, 3)
    assert report["confusion"] == [[2, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert report["heard"] == {"one": 3, "two": 1, "none": 1}
    assert report["metrics"]["agreement:two"]["value"] == pytest.approx(1 / 3)
    assert report["metrics"]["agreement:two"]["real"] == 1
    agreement = report["metrics"].pop("agreement")
    assert (agreement["low"], agreement["high"]) == (None, None)  # of two and three clips
    for row in report["metrics"].values():
        assert row["low"] <= row["value"] <= row["high"]
    assert run("evaluate", made, "--real", real, "--seed", 3).out == result.out
    alone = run("evaluate", made, "-m", NAME, "--format", "json")
    assert set(json.loads(alone.out)["metrics"]) & {"fid", "am", "is"} == {"is"}


@pytest.mark.usefixtures("pitches")
def test_too_few_clips_for_a_distance(folders: tuple[Path, Path], run: Any) -> None:
    made, real = folders
    for name in ("c.wav", "d.wav", "e.wav"):
        (made / name).unlink()
    (made / "clips.tsv").unlink()
    result = run("evaluate", made, "--real", real)
    assert result.code == 0, result.err
    assert (
        "no fid: the Frechet distance of 2 features needs more clips than features on both sides, and 2" in result.err
    )
    assert result.rows[0] == ["fid", "NA", "NA", "NA", "2", "NA"]
    assert not any(row[0].startswith("agreement") for row in result.rows)


@pytest.mark.usefixtures("pitches")
def test_bad_input(folders: tuple[Path, Path], tmp_path: Path, run: Any) -> None:
    made, real = folders

    def refused(*arguments: object) -> str:
        result = run("evaluate", *arguments)
        assert (result.code, result.out) == (1, "")
        return str(result.err)

    (tmp_path / "empty").mkdir()
    assert "has no sound file" in refused(tmp_path / "empty", "--real", real)
    assert "is not a folder" in refused(tmp_path / "nowhere", "--real", real)
    assert "is not a folder" in refused(made, "--real", tmp_path / "nowhere")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.wav").write_text("this is no sound\n" * 9)
    assert "none of the 1 there can be used" in refused(tmp_path / "text", "--real", real)
    shutil.copy(tmp_path / "text" / "a.wav", made / "z.wav")
    result = run("evaluate", made, "--real", real)
    assert result.code == 0
    assert "z.wav is not sound" in result.err
    table = (made / "clips.tsv").read_text()
    (made / "clips.tsv").write_text(table.replace("two\t", "eleven\t"))
    assert "clips.tsv, line 4: label 'eleven', expected one of one, two, none" in refused(made, "--real", real)
    (made / "clips.tsv").write_text(table.replace("c.wav", "y.wav"))
    assert "clips.tsv, line 4: there is no sound file 'y.wav'" in refused(made, "--real", real)
    (made / "clips.tsv").write_text("name\tlabel\n")
    assert "expected columns file and label" in refused(made, "--real", real)
    (real / "one").rename(real / "eleven")
    (made / "clips.tsv").write_text(table)
    assert "is in folder 'eleven', the labels known are one, two, none" in refused(made, "--real", real)
    assert run("evaluate", made, "--only", "test").code == 2
    assert run("evaluate", made, "--json", tmp_path / "no" / "x.json").code == 1


def test_a_model_of_something_else_is_refused(folders: tuple[Path, Path], run: Any) -> None:
    made, real = folders
    result = run("evaluate", made, "--real", real, "-m", "mamba-dna.bacteria11")
    assert result.code == 1
    assert "expected a classifier of spoken words, such as digits-classifier.mel" in result.err


# what hears digits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hearing() -> classifiers.Classifier:
    pytest.importorskip("torchaudio")
    return classifiers.load_classifier(NAME, CPU)


def heard(hearing: classifiers.Classifier, samples: np.ndarray) -> np.ndarray:
    return np.exp(classifiers.hear(hearing, samples.astype(np.float32), CPU).log_probabilities)


def test_features_lead_to_the_models_logits(hearing: classifiers.Classifier) -> None:
    assert hearing.labels == [*DIGITS, NOTHING]
    assert (hearing.sample_rate, hearing.length) == (16000, 16000)
    samples = torch.randn(3, 16000)
    features, logits = hearing(samples)
    model = models_zoo.load(NAME)
    assert features.shape == (3, 64)
    torch.testing.assert_close(logits, model(hearing.mel(samples)), atol=1e-5, rtol=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("loudness", [1e-4, 0.05, 0.3])
def test_silence_and_noise_are_no_digit(hearing: classifiers.Classifier, loudness: float) -> None:
    rng = np.random.default_rng(0)
    white = rng.standard_normal((30, 16000))
    brown = white.cumsum(axis=1)
    brown -= brown.mean(axis=1, keepdims=True)
    speech_shaped = np.fft.irfft(np.fft.rfft(white) / (1 + np.arange(8001) / 500), 16000)
    fading = white * np.interp(np.arange(16000), [0, 4000, 8000, 12000, 16000], [0, 1, 0.1, 1, 0])
    silence = np.zeros((2, 16000))
    silence[1] = 1  # a constant
    noises = np.concatenate([white, brown, speech_shaped, fading])
    noises *= loudness / noises.std(axis=1, keepdims=True)
    said = heard(hearing, np.concatenate([silence * loudness, noises]))
    assert (said[:, :-1].max(axis=1) < 0.5).all()
    assert (said.argmax(axis=1) == 10).all()


@pytest.fixture(scope="module")
def recordings() -> Path:
    """The shared recordings of digits, wherever the checkout has them."""
    for above in (Path(__file__).resolve().parents[2], *Path(__file__).resolve().parents):
        for place in (above / "data", above / "shared" / "data"):
            if (place / "digits8k").is_dir():
                return place
    pytest.skip("the recordings of digits (shared/data/digits8k) are not here")


def test_real_halves_are_alike_and_noise_is_not(hearing: classifiers.Classifier, recordings: Path) -> None:
    released = models_zoo.path(NAME) / "splits.tsv"
    with released.open() as file:
        tests = [r for r in csv.DictReader(file, delimiter="\t") if r["split"] != "train" and r["source"] == "digits8k"]
    samples = np.zeros((len(tests), 16000), dtype=np.float32)
    for row, each in zip(samples, tests, strict=True):
        sound = clip_files.read_audio(recordings / each["source"] / each["file"], 16000, 0, 16000)
        row[: len(sound)] = sound
    labels = [each["label"] for each in tests]
    order = np.random.default_rng(0).permutation(len(tests))
    half = len(order) // 2
    first, second = (
        clip_files.Clips(samples[part], [labels[i] for i in part], [tests[i]["file"] for i in part])
        for part in (order[:half], order[half:])
    )
    noise = clip_files.Clips(
        np.random.default_rng(1).standard_normal((200, 16000)).astype(np.float32), ["one"] * 200, ["x"] * 200
    )
    real, bad = (
        {row.metric: row.value for row in measure(hearing, made, second, CPU).metrics} for made in (first, noise)
    )
    assert real["fid"] < 0.05 * bad["fid"]
    assert real["is"] > 8
    assert bad["is"] < 1.2
    assert real["am"] < 0.5 < 1.5 < bad["am"]
    assert real["agreement"] > 0.9
    assert bad["agreement"] == 0


# likelihood ------------------------------------------------------------------------------------------------------


@pytest.fixture
def waveform(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        task="language-model",
        backbone=SaShiMiConfig(d_model=8, n_layer=1, d_state=4, pool=[2, 2]),
        vocab_size=256,
        codec="mu-law-8bit-minmax",
        sample_rate=8000,
        labels=["one", "two"],
        context=160,
        tie_embeddings=False,
    )
    return LanguageModel(config).save_pretrained(tmp_path / "model")


def test_bits_per_sample_by_split(tmp_path: Path, waveform: Path, run: Any) -> None:
    root = tmp_path / "digits"
    for seed, (digit, n, length) in enumerate(
        [(1, 0, 63), (1, 1, 200), (2, 0, 160), (1, 5, 90), (2, 12, 500), (1, 13, 100)]
    ):
        write(root / f"{digit}_ann_{n}.wav", 200 * digit, seed, length)
    result = run("evaluate", root, "-m", waveform, "--json", tmp_path / "x.json")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0].split("\t") == [
        *["source", "split", "clips", "samples", "bits", "low", "high", "histogram"]
    ]
    assert [row[:4] for row in result.rows] == [
        ["digits", "test", "4", "423"],
        ["digits", "train", "5", "600"],
        ["digits", "validation", "1", "90"],
    ]
    for row in result.rows:
        bits, plain = float(row[4]), float(row[7])
        assert 7 < bits < 9
        assert 4 < plain < 9
        if int(row[2]) < 5:
            assert row[5:7] == ["NA", "NA"]
        else:
            assert 7 < float(row[5]) <= bits <= float(row[6]) < 9
    assert json.loads((tmp_path / "x.json").read_text())["results"][0]["bits"] == pytest.approx(
        float(result.rows[0][4]), abs=1e-4
    )
    only = run("evaluate", root, "-m", waveform, "--only", "test")
    assert only.rows == result.rows[:1]
    assert run("evaluate", root, "-m", waveform, "--only", "x").code == 1
    splits = tmp_path / "splits.tsv"
    splits.write_text("source\tfile\tsplit\ndigits\t1_ann_0.wav\ttest\ndigits\t2_ann_0.wav\tvalidation\n")
    named = run("evaluate", root, "-m", waveform, "--splits", splits)
    assert [row[:3] + row[7:] for row in named.rows] == [
        ["digits", "test", "1", "NA"],
        ["digits", "validation", "1", "NA"],
    ]
    assert "4 recordings of" in named.err
    assert run("evaluate", root, "-m", waveform, "--real", root).code == 2
    write(root / "3_ann_0.wav", 600, 9)
    refused = run("evaluate", root, "-m", waveform)
    assert refused.code == 1
    assert "is of class 'three', which the model does not know; it knows one, two" in refused.err
