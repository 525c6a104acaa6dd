"""The script that measures models of speech: its recordings, temperature and tables; nothing is made or trained."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "speech.py"
ROW = {"source": "digits8k", "clips": 2, "bits": 1.5, "low": 1.4, "high": 1.6, "histogram": None}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speech", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_temperature_is_chosen_on_small_samples_and_what_was_made_is_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "digits8k"
    data.mkdir()
    for name in ("0_ann_0.wav", "1_ann_0.wav", "2_ann_7.wav"):
        soundfile.write(data / name, np.full(50, 0.5), 8000)
    rows = [("0_ann_0.wav", "test"), ("1_ann_0.wav", "test"), ("2_ann_7.wav", "train")]
    splits = tmp_path / "splits.tsv"
    splits.write_text("source\tfile\tsplit\n" + "".join(f"digits8k\t{name}\t{split}\n" for name, split in rows))
    made: list[tuple[str, int, float, float, int]] = []

    def generate_audio(model: Any, spec: str, request: Any, show: Any) -> None:
        name = Path(request.output).name
        drawing = request.drawing
        made.append((name, request.clips, drawing.temperature, drawing.guidance, drawing.seed))

    def measure(hearing: Any, clips: Any, real: Any, device: Any, seed: int) -> Any:
        assert (real.labels, real.files) == (["zero", "one"], ["0_ann_0.wav", "1_ann_0.wav"])
        assert real.samples.shape == (2, 80)
        return made[-1]

    def to_json(made: tuple[str, int, float, float, int], about: dict[str, Any]) -> str:
        metric = {"value": made[3] - abs(made[2] - 0.9), "low": 0.5, "high": 1.0, "real": None}
        return json.dumps({**about, "metrics": {"agreement": metric}})

    for name, stand_in in (
        ("locate_model", Path),
        ("from_pretrained", lambda *_: None),
        ("load_classifier", lambda *_: SimpleNamespace(sample_rate=8000, length=80, labels=["zero", "one", "two"])),
        ("generate_audio", generate_audio),
        ("read_clips", lambda *_: None),
        ("measure", measure),
        ("to_json", to_json),
        ("bits_of", lambda *_: [ROW]),
    ):
        monkeypatch.setattr(script, name, stand_in)
    arguments = ["clips", str(tmp_path), "--real", str(data), "-o", str(tmp_path / "out"), "--clips", "5"]
    arguments += ["--temperatures", "1,0.9,0.8"]
    assert script.main(arguments) == 0
    samples = [(f"sample-{t:g}", 32, t, 1.0, 1) for t in (1.0, 0.9, 0.8)]
    assert made == [*samples, ("clips-0.9", 5, 0.9, 1.0, 0), ("clips-1", 5, 1.0, 1.0, 0)]
    table = (tmp_path / "out" / "clips.md").read_text()
    assert "| agreement | 1.000 (0.500 to 1.000) | 0.900 (0.500 to 1.000) | NA |" in table
    assert "| digits8k | 2 | 1.500 (1.400 to 1.600) | NA |" in table
    assert set(json.loads((tmp_path / "out" / "clips.json").read_text())) >= {"bits digits8k", "clips 0.9", "clips 1"}
    assert script.main(arguments) == 0
    assert len(made) == 5
    assert table.strip() in capsys.readouterr().out
    # with guidance to choose from, what is there without is not made again
    assert script.main([*arguments, "--guidance", "1,2"]) == 0
    samples = [(f"sample-{t:g}-guidance-2", 32, t, 2.0, 1) for t in (1.0, 0.9, 0.8)]
    assert made[5:] == [*samples, ("clips-0.9-guidance-2", 5, 0.9, 2.0, 0)]
    table = (tmp_path / "out" / "clips.md").read_text()
    assert "temperature 0.9 guidance 2 is the best of 1 (0.900 heard as asked), " in table
    assert "| | temperature 0.9 guidance 2 | temperature 1 | recordings |" in table


def test_kinds_of_blocks_get_rows_and_an_odd_one_a_message(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[str, list[str]]] = []

    def train(recipe: str, run: Path, overrides: list[str], **_: Any) -> None:
        trained.append((run.name, overrides))
        (run / "model").mkdir(parents=True)
        (run / "model" / "record.json").write_text('{"steps": 7, "parameters": 1000, "minutes": 0.1}')

    monkeypatch.setattr(script.training, "main", train)
    monkeypatch.setattr(script, "bits_of", lambda *_: [ROW])
    arguments = ["ablate", "digits8k", "-o", str(tmp_path), "--minutes", "2", "--kinds"]
    assert script.main([*arguments, "selective,outer", "--", "--optim.lr", "1e-3"]) == 0
    assert [name for name, _ in trained] == ["warm-selective", "selective", "warm-outer", "outer"]
    assert trained[3][1][2:4] == ["--model.ssm", "[time-invariant,time-invariant,selective]"]
    assert trained[3][1][-4:] == ["--optim.lr", "1e-3", "--optim.minutes", "2.0"]
    assert "| outer | 1,000 | 7 | 1.500 (1.400 to 1.600) |" in (tmp_path / "ablate.md").read_text()
    with pytest.raises(SystemExit):
        script.main([*arguments, "wavenet"])
    assert "'wavenet' is no kind" in capsys.readouterr().err
