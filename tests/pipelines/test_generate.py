"""`mamba-seq generate`: what it writes, in every format, and what it says of what cannot be."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mamba_seq import LanguageModel, MambaConfig, ModelConfig, SaShiMiConfig
from mamba_seq.data_prep.codecs import get_codec
from mamba_seq.pipelines import gallery, generate_audio
from mamba_seq.pipelines.clip_places import COLUMNS
from mamba_seq.pipelines.sound_files import FORMATS, encode, to_pcm

LABELS = ["zero", "one", "two/2"]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECONDS = 0.05
DRIVER = """
(async () => {
  const players = [...document.querySelectorAll("audio")], pictures = [...document.images];
  const loaded = (player) => new Promise((done) => {
    if (player.readyState > 0) done();
    player.onloadedmetadata = done;
    player.onerror = done;
  });
  await Promise.all(players.map(loaded));
  const seen = {
    errors: window.pageErrors,
    lengths: players.map((player) => player.duration),
    pictures: pictures.map((picture) => picture.naturalWidth > 1 && picture.naturalHeight === 128),
    waves: [...document.querySelectorAll("svg path")].map((path) => path.getBBox().width),
    heads: [...document.querySelectorAll("h2")].map((head) => head.textContent),
    wide: document.documentElement.scrollWidth <= window.innerWidth,
    resources: performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:")).length,
  };
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
})();
"""


def saved(folder: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    fields = {"labels": LABELS, "codec": "mu-law-8bit-minmax", "sample_rate": 16000, "context": 700, **fields}
    backbone = fields.pop("backbone", None) or SaShiMiConfig(d_model=8, n_layer=1, d_state=4, pool=[2, 2], norm="layer")
    levels = 256 if fields["codec"] is None else get_codec(fields["codec"]).levels
    config = ModelConfig(task="language-model", backbone=backbone, vocab_size=levels, tie_embeddings=False, **fields)
    model = LanguageModel(config)
    assert model.output is not None
    torch.nn.init.normal_(model.output.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "digits")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "plain", labels=[])


def make(run: Any, model: Path, *arguments: object) -> Any:
    result = run("generate", "-m", model, "--seconds", SECONDS, "--seed", 7, *arguments)
    assert result.code == 0, result.err
    return result


def table(folder: Path) -> list[dict[str, str]]:
    head, *rows = [line.split("\t") for line in (folder / "clips.tsv").read_text().splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_table_and_files(run: Any, model: Path, tmp_path: Path) -> None:
    result = make(run, model, "-n", 5, "-o", tmp_path / "new" / "clips")
    assert (result.out, "5 clips, 0.2 s of sound" in result.err) == ("", True)
    rows = table(tmp_path / "new" / "clips")
    names = ["zero-0000.wav", "one-0001.wav", "two_2-0002.wav", "zero-0003.wav", "one-0004.wav"]
    assert [row["file"] for row in rows] == names
    assert sorted(p.name for p in (tmp_path / "new" / "clips").iterdir()) == sorted([*names, "clips.tsv"])
    for row in rows:
        samples, rate = soundfile.read(tmp_path / "new" / "clips" / row["file"])
        assert (len(samples), rate) == (800, 16000)
        assert float(row["peak"]) == pytest.approx(abs(samples).max(), abs=1e-4)
        assert float(row["bits_per_sample"]) == pytest.approx(-float(row["log_likelihood"]) / 800 / np.log(2), abs=1e-4)


def test_table_is_as_it_was(run: Any, plain: Path, tmp_path: Path) -> None:
    make(run, plain, "-n", 2, "-o", tmp_path, "--temperature", 0)
    rows = table(tmp_path)
    assert list(rows[0]) == list(COLUMNS)
    fixed = [[row[name] for name in ("file", "label", "seed", "index", "seconds")] for row in rows]
    assert fixed == [["clip-0000.wav", "NA", "7", "0", "0.05"], ["clip-0001.wav", "NA", "7", "1", "0.05"]]
    # the most probable levels are the same in both
    assert (tmp_path / "clip-0000.wav").read_bytes() == (tmp_path / "clip-0001.wav").read_bytes()


def test_clip_depends_on_seed_and_index_alone(run: Any, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    make(run, model, "-n", 7, "-o", tmp_path / "a", "--label", "all")
    assert len(table(tmp_path / "a")) == 21
    monkeypatch.setitem(generate_audio.AT_ONCE, "cpu", 3)
    monkeypatch.setitem(generate_audio.PIECE, "cpu", 7)
    make(run, model, "-n", 5, "-o", tmp_path / "b", "--label", "two/2", "--label", "one")
    assert [row["label"] for row in table(tmp_path / "b")] == ["two/2"] * 5 + ["one"] * 5
    for row in table(tmp_path / "b"):
        assert (tmp_path / "a" / row["file"]).read_bytes() == (tmp_path / "b" / row["file"]).read_bytes()
        assert row in table(tmp_path / "a")
    run("generate", "-m", model, "--seconds", SECONDS, "-o", tmp_path / "c", "--seed", 8, "--label", "one")
    fewer = run("generate", "-m", model, "--seconds", SECONDS, "-o", tmp_path / "b", "--seed", 8, "--label", "one")
    assert re.search(
        r"b has 9 sound files from before, such as .*\.wav, which the new clips\.tsv does not list", fewer.err
    )
    assert (tmp_path / "c" / "one-0000.wav").read_bytes() != (tmp_path / "a" / "one-0000.wav").read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_opens_with_its_length_and_rate(run: Any, plain: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"clip.{form}"
    make(run, plain, "-o", file, "--seconds", 0.3)
    info = soundfile.info(file)
    assert (info.samplerate, info.channels) == (16000, 1)
    assert info.frames == 4800
    if tool := shutil.which(
        "ffmpeg"
    ):  # what it decodes: the length that a probe reads off an MP3 has the encoder's padding
        found = subprocess.run(
            [tool, "-v", "error", "-i", file, "-f", "s16le", "-ar", "16000", "-"], capture_output=True, check=True
        )
        assert len(found.stdout) / 2 == pytest.approx(4800, abs=200 if form == "ogg" else 1)
    make(run, plain, "-o", tmp_path / "folder", "--format", form)
    assert (tmp_path / "folder" / f"clip-0000.{form}").exists()


def test_standard_output_is_raw_samples(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from mamba_seq.pipelines.cli import main; sys.exit(main())"]
    command += ["generate", "-m", str(model), "--seconds", "0.05", "--seed", "7", "--label", "one", "-o"]
    done = subprocess.run([*command, "-"], capture_output=True, check=True, timeout=120)
    assert len(done.stdout) == 1600
    subprocess.run([*command, str(tmp_path / "x.wav")], check=True, timeout=120, capture_output=True)
    assert done.stdout == soundfile.read(tmp_path / "x.wav", dtype="int16")[0].tobytes()


def test_prompt_begins_the_clip(run: Any, plain: Path, tmp_path: Path) -> None:
    t = np.arange(7056) / 44100
    sound = np.stack([np.sin(2 * np.pi * 440 * t) * 0.5 * (1 + c % 2) for c in range(8)], axis=1)
    soundfile.write(tmp_path / "p.flac", sound, 44100, subtype="PCM_24")
    make(run, plain, "-n", 2, "--prompt", tmp_path / "p.flac", "--seconds", 0.2, "-o", tmp_path / "out")
    clips = [soundfile.read(tmp_path / "out" / f"clip-000{i}.wav")[0] for i in range(2)]
    assert len(clips[0]) == 3200
    assert np.array_equal(clips[0][:2560], clips[1][:2560])
    assert not np.array_equal(clips[0], clips[1])
    expected = np.sin(2 * np.pi * 440 * np.arange(100, 2400) / 16000)
    assert abs(clips[0][100:2400] - expected).max() < 0.1


def test_guided_clips(run: Any, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    guided = saved(tmp_path / "guided", label_dropout=0.1, guidance=2.0)  # with the weights of `model`

    def clips(folder: str, model: Path, *arguments: object) -> list[bytes]:
        make(run, model, "-n", 3, "-o", tmp_path / folder, *arguments)
        return [path.read_bytes() for path in sorted((tmp_path / folder).iterdir())]

    result = make(run, guided, "-n", 3, "-o", tmp_path / "a", "--gallery", tmp_path / "index.html")
    assert "guided by 2, as the model says" in result.err
    assert "temperature 1, guidance 2<" in (tmp_path / "index.html").read_text()
    by_itself = [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())]
    monkeypatch.setitem(generate_audio.AT_ONCE, "cpu", 4)
    assert clips("b", guided, "--guidance", 2) == by_itself
    plain = clips("c", model)
    assert clips("d", guided, "--guidance", 1) == plain != by_itself
    config = guided / "config.json"
    config.write_text(config.read_text().replace('"guidance": 2.0', '"guidance": 1.0'))
    assert clips("e", guided) == plain


def write(folder: Path, name: str, samples: Any, rate: int, subtype: str) -> Path:
    soundfile.write(folder / name, samples, rate, subtype=subtype)
    return folder / name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--label", "three"], "has no label 'three'; it has zero, one, two/2"),
        (["--guidance", "2"], "guidance is 2, expected 1: the model was trained without label dropout"),
        (["--prompt", "none.wav"], "cannot be read"),
        (["--prompt", "text.wav"], "is not sound"),
        (["--prompt", "empty.wav"], "is empty"),
        (["--prompt", "header.wav"], "has no samples"),
        (["--prompt", "nan.wav"], "finite amplitudes were expected"),
        (["--prompt", "long.wav"], "is 0.050 s long and the clip 0.050 s"),
        (["--seconds", "0"], "is no sample"),
        (["--seconds", "nan"], "is no sample"),
        (["--gallery", "nowhere/x.html"], "there is no folder"),
        (["-n", "2", "-o", "x.wav"], "name a folder"),
        (["-o", "text.wav/x"], "cannot write the folder"),
        (["-o", "x.wav", "--format", "mp3"], "x.wav ends in .wav, and --format is mp3"),
        (["-o", "-", "--format", "mp3"], "--format is mp3, and -o - writes raw samples"),
        (["-o", "x.aiff"], "clips are not written as .aiff; name a file ending in .wav, .flac"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    run: Any, model: Path, tmp_path: Path, monkeypatch: Any, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.wav").write_text("no sound at all\n")
    (tmp_path / "empty.wav").write_bytes(b"")
    write(tmp_path, "header.wav", np.zeros(0), 16000, "PCM_16")
    write(tmp_path, "nan.wav", np.array([0.1, np.nan, 0.2] * 40, dtype=np.float32), 16000, "FLOAT")
    write(tmp_path, "long.wav", np.zeros((9600, 2)), 192000, "PCM_24")
    before = sorted(tmp_path.iterdir())
    result = run("generate", "-m", model, "--seconds", SECONDS, "-o", "a/b", *arguments)
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert "Traceback" not in result.err
    assert sorted(tmp_path.iterdir()) == before


def test_models_that_cannot_generate_are_told(run: Any, tmp_path: Path, plain: Path) -> None:
    config = ModelConfig(
        task="language-model", backbone=MambaConfig(d_model=4, n_layer=1), vocab_size=5, alphabet="dna"
    )
    LanguageModel(config).save_pretrained(tmp_path / "dna")
    result = run("generate", "-m", tmp_path / "dna", "-o", tmp_path / "x")
    assert result.code == 1
    assert "is a language-model that reads dna, and cannot generate; expected a language model of sound" in result.err
    result = run("generate", "-m", plain, "-o", tmp_path / "x", "--label", "one")
    assert (result.code, "knows no classes" in result.err) == (1, True)
    for wrong in (["--temperature", "-1"], ["--top-p", "0"], ["--top-k", "0"], ["-n", "0"], ["--guidance", "nan"]):
        assert run("generate", "-m", plain, "-o", tmp_path / "x", *wrong).code == 2
    assert not (tmp_path / "x").exists()


def test_rates_that_a_format_has_not(run: Any, tmp_path: Path) -> None:
    odd = saved(tmp_path / "odd", sample_rate=11025, labels=[])
    result = run("generate", "-m", odd, "-o", tmp_path / "a.opus", "--seed", 1)
    assert (result.code, "opus has 8000, 12000, 16000" in result.err) == (1, True)
    assert run("generate", "-m", odd, "-o", tmp_path / "a.mp3", "--seed", 1).code == 0


def test_nothing_is_cut_off_in_silence(run: Any, tmp_path: Path) -> None:
    loud = saved(tmp_path / "loud", codec="mu-law-8bit-gain0.5", labels=[])
    result = make(run, loud, "-o", tmp_path / "clips")
    assert re.search(r"warning: clip-0000.wav: \d+ samples were beyond full scale and are cut off", result.err)
    assert float(table(tmp_path / "clips")[0]["peak"]) > 1
    assert to_pcm(np.array([0.5, -1.0, 1.0, 1.5], dtype=np.float32))[1] == 1


def test_gallery_is_one_file_without_addresses(run: Any, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gallery, "MOST_CLIPS", 3)
    make(run, model, "-n", 5, "-o", tmp_path / "clips", "--gallery", tmp_path / "clips" / "index.html")
    text = (tmp_path / "clips" / "index.html").read_text()
    HTMLParser().feed(text)
    assert text.count("<audio") == 3
    assert "The first 3 of 5 clips" in text
    assert {found[:5] for found in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"data:"}
    assert not re.findall(r"https?://", text)
    assert "<script" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("size", ["1200,900", "360,700"])
def test_gallery_in_a_browser(run: Any, model: Path, tmp_path: Path, size: str) -> None:
    assert CHROMIUM is not None
    page = tmp_path / "index.html"
    make(run, model, "-n", 4, "-o", tmp_path / "clips", "--gallery", page)
    text = page.read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    listener = "<script>window.pageErrors = []; addEventListener('error', (e) => pageErrors.push(e.message));"
    listener += "document.addEventListener('securitypolicyviolation', (e) => pageErrors.push(e.blockedURI));</script>"
    page.write_text(
        text.replace("<style>", listener + "<style>", 1).replace("</body>", f"<script>{DRIVER}</script></body>")
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--window-size={size}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-1000:]
    seen = json.loads(found[1])
    assert seen["errors"] == []
    assert seen["lengths"] == pytest.approx([SECONDS] * 4, abs=1e-3)
    assert seen["pictures"] == [True] * 4
    assert min(seen["waves"]) > 390
    assert seen["heads"] == LABELS
    assert (seen["wide"], seen["resources"]) == (True, 0)


def test_spectrogram_shows_a_tone_where_it_is() -> None:
    t = np.arange(16000) / 16000
    levels = gallery.decibels(np.sin(2 * np.pi * 2000 * t).astype(np.float32))
    assert levels.shape[0] == gallery.BANDS
    # the lowest band is that behind the mean
    assert (levels[:, 20:-20].argmax(axis=0) == 2000 * 2 * gallery.BANDS // 16000 - 1).all()
    assert gallery.decibels(np.zeros(10, dtype=np.float32)).max() == -gallery.DECIBELS
    assert encode(np.zeros(5, dtype=np.int16), 8000, "wav")[:4] == b"RIFF"
