"""The script that measures clips of music: a held tone is told from notes, and notes are near recordings."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import soundfile

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "music.py"


def test_held_tones_and_distances(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("music", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    music = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(music)
    time = np.arange(16000) / 16000
    noise = 0.01 * np.random.default_rng(0).standard_normal(16000)
    notes = sum(np.sin(2 * np.pi * hertz * time) for hertz in (200, 600, 1500)) * np.exp(-6 * (time % 0.25)) / 3 + noise
    for folder, clip in {
        "real": np.tile(notes, 8),
        "notes": notes,
        "tone": 0.9 * np.sin(2 * np.pi * 700 * time),
    }.items():
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", clip, 16000)
    (tmp_path / "splits.tsv").write_text("file\tsplit\na.wav\ttest\nb.wav\ttrain\n")
    folders = [str(tmp_path / "notes"), str(tmp_path / "tone")]
    where = ["--real", str(tmp_path / "real"), "--splits", str(tmp_path / "splits.tsv"), "-o", str(tmp_path / "x.json")]
    music.main([*folders, *where, "--seconds", "1"])
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [rows[name]["clips"] for name in rows] == [8, 1, 1]
    assert [rows[name]["held"] for name in rows] == [0, 0, 1]
    assert rows["tone"]["one tone"] == 1.0
    assert abs(rows["tone"]["level"] - 20 * np.log10(0.9 / 2**0.5)) < 0.01
    assert rows["notes"]["spectrum"] < 3 < 10 < rows["tone"]["spectrum"]
