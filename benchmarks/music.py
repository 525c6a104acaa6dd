"""What a waveform model's clips of music are beside recordings: level, noise, tones that are held, spectrum.

    mamba-seq generate -m MODEL -n 8 --seconds 4 --seed 1 --temperature 0.9 -o clips-0.9
    PYTHONPATH=. python benchmarks/music.py clips-0.9 ... --real PIANO16K --splits MODEL/splits.tsv [--skip 2]

Recordings are those that the table of splits holds for the test, in excerpts as long as clips are drawn (`--seconds`),
each through the model's codec, which stretches it to full scale and rounds it to levels as the clips are. `--skip`
leaves out the start of every clip, such as the prompt that it goes on from.

The table has, of each folder and of the recordings:

    level       root mean square, dB below full scale
    full        samples beyond 0.95 of full scale
    silent      frames of 10 ms whose root mean square is below 0.01
    one tone    frames of 64 ms (16 ms apart) with more than 0.8 of their energy within 31 Hz of one frequency
    held        clips with such frames for half a second on end
    noise       mean energy of a bin from 5 to 7 kHz, dB below that of the mean bin
    spectrum    root mean square, over 40 mel bands from 50 to 7,600 Hz, of the difference from all recordings in mean
                log energy, dB, with the 95 % interval of clips drawn again (seed 0)

The recordings' spectrum is that of eight excerpts beside all, the least and the most of eight lots.

Shapes: N samples, F frames, 513 bins, 40 bands.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import soundfile
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torchaudio.functional import melscale_fbanks

from mamba_seq.data_prep.codecs import get_codec

Reals = NDArray[np.float64]
Row = dict[str, float]
RATE, WINDOW, HOP, BANDS, LOTS = 16000, 1024, 256, 40, 8
HELD = RATE // 2 // HOP + 1  # frames that begin in half a second


def main(argv: list[str] | None = None) -> None:
    """Print the table as Markdown, or write it as JSON with `-o`."""
    parser = argparse.ArgumentParser(description="What clips of music are beside recordings.")
    parser.add_argument("clips", nargs="+", type=Path, help="folders of clips")
    parser.add_argument("--real", type=Path, required=True, help="folder of recordings, 16 kHz, mono")
    parser.add_argument("--splits", type=Path, required=True, help="the model's splits.tsv")
    parser.add_argument("--codec", default="mu-law-8bit-minmax")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of an excerpt")
    parser.add_argument("--skip", type=float, default=0.0, help="seconds left out at the start of every clip")
    parser.add_argument("-o", "--out", type=Path, help="a JSON file")
    options = parser.parse_args(argv)
    with options.splits.open(encoding="utf-8") as lines:
        files = [row["file"] for row in csv.DictReader(lines, delimiter="\t") if row["split"] == "test"]
    real = excerpts([options.real / file for file in files], round(options.seconds * RATE), options.codec)
    spectra = [log_mel(power(clip)) for clip in real]
    lots = [distance(spectra[lot::LOTS], spectra) for lot in range(LOTS)] if len(real) >= LOTS else [0.0]
    rows = {"recordings": {**measures(real), "spectrum": 0.0, "low": min(lots), "high": max(lots)}}
    for folder in options.clips:
        clips = [
            read(file)[round(options.skip * RATE) :] for file in sorted(folder.glob("*.*")) if file.suffix != ".tsv"
        ]
        rows[folder.name] = {**measures(clips), **spectrum([log_mel(power(clip)) for clip in clips], spectra)}
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


def read(file: Path) -> Reals:
    """Return the samples (N,) of a mono file at the model's rate, -1 to 1."""
    samples, rate = soundfile.read(file)
    if rate != RATE or samples.ndim != 1:
        raise SystemExit(f"{file}: {rate} Hz, {samples.ndim} dimensions; {RATE} Hz and mono was expected")
    return np.asarray(samples, dtype=np.float64)


def excerpts(files: list[Path], length: int, codec: str) -> list[Reals]:
    """Return all whole stretches of `length` samples, as the codec gives them back."""
    levels = get_codec(codec)
    found = []
    for file in files:
        samples = read(file)
        for start in range(0, len(samples) - length + 1, length):
            found.append(levels.decode(levels.encode(samples[start : start + length])).astype(np.float64))
    return found


def power(clip: Reals) -> Reals:
    """Return the energy (F, 513) of each frame and bin: of a sine of amplitude 1, a quarter in its bin."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = sliding_window_view(clip, WINDOW)[::HOP] * window
    return np.asarray(np.abs(np.fft.rfft(frames) / window.sum()) ** 2)


def log_mel(energy: Reals) -> Reals:
    """Return the energy (F, 40) of mel bands in dB."""
    bands = melscale_fbanks(WINDOW // 2 + 1, 50.0, 7600.0, BANDS, RATE).double().numpy()
    return np.asarray(10 * np.log10(energy @ bands + 1e-10))


def one_tone(energy: Reals) -> NDArray[np.bool_]:
    """Return of each frame (F,) whether one frequency has most of its energy; below 40 Hz there is none."""
    heard = energy.copy()
    heard[:, :3] = 0
    peaks = heard.argmax(1)
    around = [frame[max(peak - 2, 0) : peak + 3].sum() for frame, peak in zip(energy, peaks, strict=True)]
    return np.asarray(np.array(around) > 0.8 * (energy.sum(1) + 1e-12))


def measures(clips: list[Reals]) -> Row:
    """Return what does not compare clips with recordings, means over clips."""
    energies = [power(clip) for clip in clips]
    tones = [one_tone(energy) for energy in energies]
    quiet = [np.sqrt((clip[: len(clip) // 160 * 160].reshape(-1, 160) ** 2).mean(1)) < 0.01 for clip in clips]
    noise = [np.log10(energy[:, 320:448].mean() + 1e-12) - np.log10(energy.mean() + 1e-12) for energy in energies]
    return {
        "clips": len(clips),
        "level": float(10 * np.log10(np.mean([(clip**2).mean() for clip in clips]) + 1e-12)),
        "full": float(np.mean([(np.abs(clip) > 0.95).mean() for clip in clips])),
        "silent": float(np.mean([frames.mean() for frames in quiet])),
        "one tone": float(np.mean([frames.mean() for frames in tones])),
        "held": sum(bool((sliding_window_view(t, HELD).all(1)).any()) for t in tones if len(t) >= HELD),
        "noise": float(10 * np.mean(noise)),
    }


def distance(some: list[Reals], others: list[Reals]) -> float:
    """Return how far mean log energies are apart, dB."""
    means = np.concatenate(some).mean(0) - np.concatenate(others).mean(0)
    return float(np.sqrt((means**2).mean()))


def spectrum(clips: list[Reals], real: list[Reals], draws: int = 300) -> Row:
    """Return the distance from recordings and its interval."""
    rng = np.random.default_rng(0)
    again = [distance([clips[i] for i in rng.integers(0, len(clips), len(clips))], real) for _ in range(draws)]
    low, high = np.percentile(again, [2.5, 97.5])
    return {"spectrum": distance(clips, real), "low": float(low), "high": float(high)}


def table(rows: dict[str, Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| | clips | level, dB | full | silent | one tone | held | noise, dB | spectrum, dB |",
        "|---" + "|---:" * 8 + "|",
    ]
    for name, row in rows.items():
        cells = f"{row['clips']} | {row['level']:.1f} | {row['full']:.3f} | {row['silent']:.4f} | {row['one tone']:.2f}"
        cells += (
            f" | {row['held']} | {row['noise']:.0f} | {row['spectrum']:.1f} ({row['low']:.2f} to {row['high']:.2f})"
        )
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
