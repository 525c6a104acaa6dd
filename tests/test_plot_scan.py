"""The script that draws the README's figures: the latest of each row, small files, the same bytes every time."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scan_h200.csv"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_scan", ROOT / "benchmarks" / "plot_scan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(figure: Figure) -> str:
    drawn = [text.get_text() for axes in figure.axes for text in axes.texts]
    return "\n".join([*drawn, *(text.get_text() for text in figure.texts), figure.get_suptitle()])


def test_four_small_files_the_same_every_time(script: ModuleType, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert script.main([str(RESULTS), "--output", str(tmp_path / folder)]) == 0
    one = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert one == {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}
    assert set(one) == {f"scan_h200_{kind}.{page}.png" for kind in ("lengths", "shapes") for page in ("light", "dark")}
    assert set(one) == {file.name for file in (ROOT / "docs" / "figures").glob("scan_h200_*.png")}
    assert all(len(data) < 100_000 for data in one.values())
    corner = {
        page: Image.open(tmp_path / "one" / f"scan_h200_lengths.{page}.png").convert("L").getpixel((0, 0))
        for page in ("light", "dark")
    }
    assert corner["light"] > 250
    assert corner["dark"] < 25


def test_what_is_written_beside_the_lines(script: ModuleType) -> None:
    rows = script.latest(script.read(RESULTS))
    style = script.STYLES["light"]
    written = texts(script.draw_lengths(rows, style))
    newest = rows[-1]
    for words in (newest["gpu"], newest["date"], "mamba-seq", "floor: exponentials alone", "floor: bytes alone"):
        assert words in written
    last = max((row for row in rows if row["peer"] == "FlashAttention"), key=lambda row: int(row["L"]))
    assert f"FlashAttention: {float(last['peer_ms']) / float(last['ours_ms']):.0f}x our time" in written
    written = texts(script.draw_shapes(rows, style))
    ours_too = [row for row in rows if row["peer"] == "mamba_ssm"]
    shapes = {(row["B"], row["L"], row["D"]) for row in ours_too if row["direction"] == "backward"}
    for row in ours_too:
        if (row["B"], row["L"], row["D"]) in shapes:
            assert f"{float(row['peer_ms']) / float(row['ours_ms']):.1f}x" in written


def test_the_latest_of_each_row_is_drawn(script: ModuleType, tmp_path: Path) -> None:
    rows = script.read(RESULTS)
    newer = {**rows[0], "ours_ms": "0.0100", "date": "2027-01-01"}
    path = tmp_path / "scan_x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows, newer])
    kept = script.latest(script.read(path))
    assert len(kept) == len(script.latest(rows))
    assert kept[-1] == newer
    assert rows[0] not in kept
    assert "2026-11-24 to 2027-01-01" in texts(script.draw_shapes(kept, script.STYLES["dark"]))


def test_mamba_ssm_beside_ours_at_the_last_length(script: ModuleType) -> None:
    rows = script.latest(script.read(RESULTS))
    alone = [row for row in rows if row["D"] == "1024" and not row["peer"]]
    with_peer = [{**row, "peer": "mamba_ssm", "peer_ms": str(1.2 * float(row["ours_ms"]))} for row in alone]
    assert "mamba_ssm: 1.2x our time" in texts(script.draw_lengths([*rows, *with_peer], script.STYLES["light"]))
