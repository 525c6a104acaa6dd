"""How good a waveform model of spoken digits is: its clips as a classifier hears them, its likelihoods by block kind.

    PYTHONPATH=. python benchmarks/speech.py clips MODEL -o FOLDER --real DIGITS16K DIGITS8K [--clips 200] \
        [--temperatures 1.0,0.95,0.9,0.8] [--guidance 1,1.5,2,3]
    PYTHONPATH=. python benchmarks/speech.py ablate DIGITS16K DIGITS8K -o FOLDER --minutes M \
        [--kinds selective,time-invariant,outer] [-- --optim.lr 1e-3 ...]

`clips` draws a small sample at every temperature with every guidance and takes the pair at which it is best heard as
the digit that was asked for. With it, and at temperature 1 without guidance (which is a guidance of 1), another seed
draws the clips that count: how often each digit is heard as such, Frechet distance, Inception Scores and AM against the
recordings that the model's splits.tsv holds for the test. The likelihoods of those recordings, in bits per sample by
source, come first. Guidance other than 1 is for models trained with data.label_dropout.

`ablate` trains one recipe with other kinds of blocks, each for the same minutes: kernels are compiled before the clock
starts. Bits per sample of the test's recordings, by source, stand beside the histogram of levels.

Both keep what they find in FOLDER as JSON and as a Markdown table, after every part: the same command again does what
is not there yet. A training that was stopped goes on from its checkpoint.
"""

import argparse
import csv
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mamba_seq.counted import Drawing
from mamba_seq.data_prep.audio_files import AudioFile, detect_layout, find_audio
from mamba_seq.data_prep.audio_io import read_audio
from mamba_seq.heads import LanguageModel
from mamba_seq.loading import from_pretrained
from mamba_seq.pipelines.audio_request import AudioRequest
from mamba_seq.pipelines.generate_audio import generate_audio
from mamba_seq.pipelines.models import locate_model
from mamba_seq.pipelines.runtime import start
from mamba_seq.pipelines.speech.classifier import Classifier, load_classifier
from mamba_seq.pipelines.speech.clips import Clips, read_clips
from mamba_seq.pipelines.speech.likelihood import measure_bits
from mamba_seq.pipelines.speech.measure import measure, to_json
from mamba_seq.pipelines.train import run as training

Found = dict[str, Any]
Pair = tuple[float, float]
"""Temperature and guidance."""
PLAIN: Pair = (1.0, 1.0)
HEARD = ("fid", "is", "is_released", "mis", "am", "agreement", "no_word")
TEST = "test"
RECIPE = "sashimi-mamba.digits16k"
SHORT = ["--optim.warmup_steps", "100", "--val_every", "250", "--seed", "1"]
"""Of the recipe, for minutes instead of an hour."""
COMPILING = ["--optim.steps", "3", "--optim.warmup_steps", "1", "--val_every", "2"]
COMPILING += ["--data.validation_clips", "32", "--data.test_clips", "32"]
KINDS = {
    "selective": "selective",
    "time-invariant": "time-invariant",
    "complex": "complex",
    "outer": "[time-invariant,time-invariant,selective]",  # selective where the sequence is shortest
}
log = logging.getLogger("mamba_seq")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    clips = kinds.add_parser("clips", help="clips of a model, and what a classifier hears")
    clips.add_argument("model", help="a zoo name or the folder of a saved model")
    clips.add_argument("--real", nargs="+", type=Path, required=True, help="the folders that the model was trained on")
    clips.add_argument("--splits", type=Path, help="of the recordings; by default the model's")
    clips.add_argument("--classifier", default="digits-classifier.mel")
    clips.add_argument("--clips", type=int, default=200, help="of each digit")
    clips.add_argument("--sample", type=int, default=32, help="clips of each digit that a pair is chosen by")
    clips.add_argument("--temperatures", type=numbers, default=[1.0, 0.95, 0.9, 0.8])
    clips.add_argument("--guidance", type=numbers, default=[1.0], help="to choose from beside the temperatures")
    clips.add_argument("--seed", type=int, default=0, help="of the clips; the small samples have the next one")
    clips.add_argument("--seconds", type=float, help="of a clip; by default of those that were trained on")
    clips.set_defaults(do=measure_clips)
    ablate = kinds.add_parser("ablate", help="the recipe with other kinds of blocks")
    ablate.add_argument("data", nargs="+", type=Path, help="folders of recordings")
    ablate.add_argument("--recipe", default=RECIPE)
    ablate.add_argument("--minutes", type=float, required=True, help="of training, of each kind")
    ablate.add_argument("--kinds", type=names, default=["selective", "time-invariant", "outer"])
    ablate.set_defaults(do=ablate_kinds)
    for each in (clips, ablate):
        each.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
        each.add_argument("--device", default="auto")
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:at])
    options.overrides = given[at + 1 :]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.output.mkdir(parents=True, exist_ok=True)
    options.do(options)
    return 0


def numbers(text: str) -> list[float]:
    """Read temperatures, or guidance."""
    return [float(each) for each in text.split(",")]


def names(text: str) -> list[str]:
    """Read kinds of blocks."""
    kinds = text.split(",")
    odd = [each for each in kinds if each not in KINDS]
    if odd:
        raise argparse.ArgumentTypeError(f"{odd[0]!r} is no kind, expected some of {','.join(KINDS)}")
    return kinds


def measure_clips(options: argparse.Namespace) -> None:
    """Choose temperature and guidance, make the clips, score them."""
    device = start(options.device)
    folder, keep = options.output, Kept(options.output / "clips.json")
    splits = options.splits or locate_model(options.model) / "splits.tsv"
    hearing = load_classifier(options.classifier, device)
    real = recordings(options.real, splits, hearing)
    for root in options.real:
        keep(f"bits {root.name}", bits_of, options.model, root, splits, device)

    def scores(clips: int, pair: Pair, seed: int, name: str) -> Found:
        temperature, guidance = pair
        drawing = Drawing(temperature=temperature, seed=seed, guidance=guidance)
        request = AudioRequest(
            output=str(folder / name), clips=clips, seconds=options.seconds, labels=("all",), drawing=drawing
        )
        model = cast("LanguageModel", from_pretrained(locate_model(options.model), device))
        generate_audio(model, options.model, request, lambda *_: None)
        made = read_clips(folder / name, hearing.sample_rate, hearing.length, hearing.labels)
        about = {"clips": clips, "temperature": temperature, "guidance": guidance, "seed": seed}
        about["recordings"] = len(real.files)
        return cast("Found", json.loads(to_json(measure(hearing, made, real, device, seed), about)))

    pairs = [(t, w) for w in options.guidance for t in options.temperatures]

    def make(part: str, clips: int, pair: Pair, seed: int) -> str:
        key = f"{part} {called(pair)}"
        keep(key, scores, clips, pair, seed, key.replace(" ", "-"))
        return key

    samples = {pair: make("sample", options.sample, pair, options.seed + 1) for pair in pairs}
    best = best_pair({pair: keep.found[key] for pair, key in samples.items()})
    for pair in dict.fromkeys([best, PLAIN]):
        make("clips", options.clips, pair, options.seed)
    table = clips_table(options.model, best, keep.found)
    (folder / "clips.md").write_text(table, encoding="utf-8")
    print(table)


def ablate_kinds(options: argparse.Namespace) -> None:
    """Train and measure every kind of block."""
    device = start(options.device)
    folder, keep = options.output, Kept(options.output / "ablate.json")
    for kind in options.kinds:
        keep(kind, train_kind, options, kind, device)
    table = ablation_table(options.recipe, options.minutes, {kind: keep.found[kind] for kind in options.kinds})
    (folder / "ablate.md").write_text(table, encoding="utf-8")
    print(table)


def train_kind(options: argparse.Namespace, kind: str, device: torch.device) -> Found:
    """Train a kind for its minutes; return bits by source, and how many steps and parameters it had."""
    roots = [str(each) for each in options.data]
    fields = ["--data.roots", json.dumps(roots), "--model.ssm", KINDS[kind], *SHORT, *options.overrides]
    run = options.output / kind
    if not (run / "model").exists():
        training.main(options.recipe, options.output / f"warm-{kind}", fields + COMPILING, force=True)
        training.main(options.recipe, run, [*fields, "--optim.minutes", str(options.minutes)])
    record = json.loads((run / "model" / "record.json").read_text(encoding="utf-8"))
    found = {key: record.get(key) for key in ("steps", "parameters", "minutes")}
    rows = [bits_of(str(run / "model"), root, run / "splits.tsv", device) for root in options.data]
    return {**found, "bits": [row for each in rows for row in each]}


def bits_of(spec: str, root: Path, splits: Path, device: torch.device) -> list[Found]:
    """Return the rows of bits per sample of a folder's test recordings; NaN, which JSON has not, becomes None."""
    model = cast("LanguageModel", from_pretrained(locate_model(spec), device))
    rows = measure_bits(model, root, device, splits, TEST)
    return [{k: None if v != v else v for k, v in dataclasses.asdict(row).items()} for row in rows]


def recordings(roots: Sequence[Path], splits: Path, hearing: Classifier) -> Clips:
    """Read the recordings of all folders that a run's splits.tsv holds for the test."""
    with splits.open(encoding="utf-8", newline="") as lines:
        wanted = {(r["source"], r["file"]) for r in csv.DictReader(lines, delimiter="\t") if r["split"] == TEST}
    files = [file for root in roots for file in labelled(root) if (file.source, file.file) in wanted]
    if not files:
        raise SystemExit(f"{splits} holds no recording of {', '.join(map(str, roots))} for the test")
    samples = np.zeros((len(files), hearing.length), dtype=np.float32)
    for row, file in zip(samples, files, strict=True):
        sound = read_audio(file.path, hearing.sample_rate, 0, hearing.length)
        row[: len(sound)] = sound
    return Clips(samples, [file.label for file in files], [file.file for file in files])


def labelled(root: Path) -> list[AudioFile]:
    """Return the recordings of a folder with their labels."""
    files, _ = find_audio(root)
    if detect_layout([file.path for file in files]) == "folder":
        files, _ = find_audio(root, "folder", folder_labels=True)
    return files


class Kept:
    """What was found, by its part; a file has it after every part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: Found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __call__(self, part: str, make: Callable[..., Any], *arguments: Any) -> None:
        """Make a part that is not there yet, of these arguments."""
        if part in self.found:
            return
        log.info("%s", part)
        self.found[part] = make(*arguments)
        new = self.path.with_suffix(".part")
        new.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)


def called(pair: Pair) -> str:
    """Return what a temperature with a guidance is called: of no guidance as if there were none to choose."""
    temperature, guidance = pair
    return f"{temperature:g}" + (f" guidance {guidance:g}" if guidance != 1 else "")


def best_pair(found: dict[Pair, Found]) -> Pair:
    """Return the pair whose clips agree best with what was asked for; of equals, the first."""
    return max(found, key=lambda pair: found[pair]["metrics"]["agreement"]["value"])


def clips_table(model: str, best: Pair, found: Found) -> str:
    """Return the Markdown table of clips: of the best temperature and guidance, of 1 and 1, and recordings."""
    pairs = list(dict.fromkeys([best, PLAIN]))
    shown = [found[f"clips {called(pair)}"] for pair in pairs]
    metrics = [m for m in shown[0]["metrics"] if m in HEARD or m.startswith("agreement:")]
    lines = [
        f"Clips of {model}, {shown[0]['clips']} of each digit (seed {shown[0]['seed']}), beside "
        f"{shown[0]['recordings']} held-out recordings; temperature {called(best)} is the best of "
        + ", ".join(
            f"{key.removeprefix('sample ')} ({each['metrics']['agreement']['value']:.3f} heard as asked)"
            for key, each in found.items()
            if key.startswith("sample ")
        )
        + " on small samples of another seed.",
        "",
        "| | " + " | ".join(f"temperature {called(pair)}" for pair in pairs) + " | recordings |",
        "|---|" + "---:|" * (len(shown) + 1),
    ]
    for name in metrics:
        cells = [interval(each["metrics"][name]) for each in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {cell(shown[0]['metrics'][name]['real'])} |")
    lines += ["", "| source | clips | bits per sample | histogram of levels |", "|---|---:|---:|---:|"]
    for row in (row for key in found if key.startswith("bits ") for row in found[key]):
        bits = interval({**row, "value": row["bits"]})
        lines.append(f"| {row['source']} | {row['clips']} | {bits} | {cell(row['histogram'])} |")
    return "\n".join(lines) + "\n"


def ablation_table(recipe: str, minutes: float, found: Found) -> str:
    """Return the Markdown table of kinds of blocks."""
    lines = [f"{recipe} with other blocks, {minutes:g} minutes of training each; bits per sample of held-out", ""]
    sources = {row["source"]: cell(row["histogram"]) for each in found.values() for row in each["bits"]}
    lines[0] += " recordings, by source."
    lines += [
        "| blocks | parameters | steps | " + " | ".join(sources) + " |",
        "|---|---:|---:|" + "---:|" * len(sources),
    ]
    for kind, each in found.items():
        by_source = {row["source"]: interval({**row, "value": row["bits"]}) for row in each["bits"]}
        cells = [by_source.get(source, "NA") for source in sources]
        lines.append(f"| {kind} | {each['parameters']:,} | {each['steps']:,} | " + " | ".join(cells) + " |")
    lines.append("| histogram of levels | | | " + " | ".join(sources.values()) + " |")
    return "\n".join(lines) + "\n"


def interval(row: Found) -> str:
    """Return a value with its interval."""
    low, high = cell(row["low"]), cell(row["high"])
    return cell(row["value"]) + ("" if "NA" in (low, high) else f" ({low} to {high})")


def cell(value: float | None) -> str:
    """Return a number as tables have it."""
    return "NA" if value is None or not math.isfinite(value) else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
