"""Log-mel features, varied words, and batches that depend on seed and number alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mamba_seq.data_prep import word_augment
from mamba_seq.data_prep.errors import TooFewData
from mamba_seq.data_prep.mel import LogMel, get_features
from mamba_seq.data_prep.words import NOTHING, SOUNDS_OF_NOTHING, WordData, WordDataConfig

pytest.importorskip("torchaudio")
NAME = "log-mel-40band-12.5ms-3600hz"
MEL = get_features(NAME, 16000)


def tone(hertz: float, length: int = 16000) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(length) / 16000)


@pytest.mark.parametrize("length", [1, 63, 1000, 2049, 16000])
def test_shape_for_any_length(length: int) -> None:
    made = MEL(torch.randn(2, length))
    assert made.shape == (2, length // 200 + 1, 40)
    assert made.isfinite().all()
    assert (made.amax(dim=(1, 2)) - 1.5).abs().max() < 1e-6
    assert made.min() >= -1.5


def test_names_and_their_mistakes() -> None:
    assert MEL.name == NAME
    assert get_features("log-mel-8band-10ms-4000hz", 8000) == LogMel(8, 10.0, 4000, 8000)
    with pytest.raises(ValueError, match="unknown features 'mel'"):
        get_features("mel", 16000)
    with pytest.raises(ValueError, match="highest frequency of 5000 Hz came"):
        get_features("log-mel-8band-10ms-5000hz", 8000)
    with pytest.raises(ValueError, match="0 bands"):
        LogMel(0, 10, 4000, 8000)
    with pytest.raises(ValueError, match="NaN or infinite"):
        MEL(torch.full((1, 500), math.nan))
    with pytest.raises(ValueError, match=r"\(500,\) came"):
        MEL(torch.zeros(500))


def test_loudness_and_what_is_above_the_band_have_no_effect() -> None:
    word = (tone(300) + 0.3 * tone(1700))[None] * torch.hann_window(16000)
    torch.testing.assert_close(MEL(0.003 * word), MEL(word), atol=2e-4, rtol=0)
    # as in a recording at 8 kHz, or not: only the window's side lobes are left of it
    bright = word + 0.5 * tone(6000)[None] * torch.hann_window(16000)
    assert (MEL(bright) - MEL(word)).abs().max() < 0.1


def test_a_tone_is_in_its_band() -> None:
    bands = [int(MEL(tone(hertz)[None])[0, 40].argmax()) for hertz in (100, 400, 1000, 3000)]
    assert bands == sorted(set(bands))


@pytest.fixture
def config(tmp_path: Path) -> WordDataConfig:
    rng = np.random.default_rng(0)
    for word in ("no", "yes"):
        (tmp_path / "words" / word).mkdir(parents=True)
        for n in range(8):
            sound = 0.1 * rng.standard_normal(rng.integers(700, 2600))
            soundfile.write(tmp_path / "words" / word / f"{n}.wav", sound, 16000)
    return WordDataConfig(
        roots=[str(tmp_path / "words")],
        length=2049,
        batch_size=5,
        split="file",
        test_files=["*/0.wav"],
        validation_files=["*/1.wav"],
    )


def test_batches_depend_on_seed_and_number_alone(config: WordDataConfig) -> None:
    data, again = WordData(config), WordData(config)
    data.setup()
    again.setup()
    assert data.labels == ["no", "yes", NOTHING]
    batches = iter(data.train_dataloader())
    first, second = next(batches), next(batches)
    assert first.samples.shape == (5, 2049)
    assert not torch.equal(first.samples, second.samples)
    again.start_step = 1
    assert torch.equal(next(iter(again.train_dataloader())).samples, second.samples)
    many = [next(batches).labels for _ in range(60)]
    shares = torch.bincount(torch.cat(many), minlength=3) / 300
    assert shares[2] == pytest.approx(0.15, abs=0.06)
    assert shares[0] == pytest.approx(0.425, abs=0.09)


def test_evaluation_clips_are_the_files_and_then_no_word(config: WordDataConfig) -> None:
    data = WordData(config)
    data.setup()
    batches = list(data.evaluation_loader("test"))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == [0, 1] + [2] * SOUNDS_OF_NOTHING
    assert all(batch.samples.isfinite().all() for batch in batches)


def test_mistakes(config: WordDataConfig, tmp_path: Path) -> None:
    fields = {"roots": config.roots}
    for wrong, message in {
        "nothing": (0.0, "data.nothing is 0.0"),
        "features": ("x", "unknown features 'x'"),
        "labels": (["none"], "is the class of what is no word"),
        "length": (0, "data.length is 0"),
    }.items():
        with pytest.raises(ValueError, match=message[1]):
            WordDataConfig(**fields, **{wrong: message[0]})
    for n in range(3):
        soundfile.write(tmp_path / "words" / f"{n}.wav", np.zeros(100), 16000)
    with pytest.raises(TooFewData, match="each file in a folder that is named like its word"):
        WordData(config).setup()


@pytest.mark.parametrize("length", [2049, 16000])
def test_every_sound_that_is_no_word_is_finite_and_of_the_length(length: int) -> None:
    rng = np.random.default_rng(0)
    draw = lambda: rng.standard_normal(900).astype(np.float32)  # noqa: E731
    for _ in range(60):
        sound = word_augment.no_word(draw, length, rng)
        assert sound.shape == (length,)
        assert sound.dtype == np.float32
        assert np.isfinite(sound).all()


@pytest.mark.parametrize("heard", [np.zeros(900), np.ones(1), np.random.default_rng(1).standard_normal(5000)])
def test_every_recording_can_be_varied(heard: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        made = word_augment.vary(heard.astype(np.float32), 2049, rng)
        assert made.shape == (2049,)
        assert np.isfinite(made).all()
