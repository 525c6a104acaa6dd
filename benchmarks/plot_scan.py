"""Draw the README's figures from saved times of the scan.

    python benchmarks/plot_scan.py [results/scan_h200.csv] [--output docs/figures]

`scan_<gpu>_lengths`: one sequence, time against length, both axes logarithmic, with the peers and the floors.
`scan_<gpu>_shapes`: the shapes of the README, ours beside mamba_ssm and the floors, forward and backward. Each is drawn
twice, for a light and a dark page. Of several runs of a row the latest is drawn.
"""

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

HERE = Path(__file__).resolve().parent
KEY = ("op", "direction", "B", "L", "D", "N", "dtype", "peer")
OURS = "mamba-seq"
Rows = list[dict[str, str]]


class Style(NamedTuple):
    """Colours of a page; those of the lines are told apart by people who do not see red and green, too."""

    page: str
    text: str
    grid: str
    lines: dict[str, str]


STYLES = {
    "light": Style(
        "#ffffff",
        "#24292f",
        "#d8dee4",
        {OURS: "#0550ae", "mamba_ssm": "#bc4c00", "FlashAttention": "#8250df", "PyTorch scan": "#57606a"},
    ),
    "dark": Style(
        "#0d1117",
        "#e6edf3",
        "#30363d",
        {OURS: "#58a6ff", "mamba_ssm": "#f0883e", "FlashAttention": "#bc8cff", "PyTorch scan": "#9198a1"},
    ),
}
MARKERS = {OURS: "o", "mamba_ssm": "s", "FlashAttention": "^", "PyTorch scan": "D"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=HERE / "results" / "scan_h200.csv")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "figures")
    asked = parser.parse_args(arguments)
    rows = latest(read(asked.results))
    asked.output.mkdir(parents=True, exist_ok=True)
    for kind, draw in (("lengths", draw_lengths), ("shapes", draw_shapes)):
        for page, style in STYLES.items():
            with plt.rc_context(settings(style)):
                figure = draw(rows, style)
                path = asked.output / f"{asked.results.stem}_{kind}.{page}.png"
                save(figure, path)
                plt.close(figure)
            print(f"{path}: {path.stat().st_size / 1000:.0f} KB")
    return 0


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of few colours, a third of the size; the same data make the same bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    drawn.seek(0)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def read(path: Path) -> Rows:
    """Read the rows of a results file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def latest(rows: Rows) -> Rows:
    """Keep the last of the rows that measure the same: files are appended to."""
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[name] for name in KEY)
        kept.pop(key, None)  # a newer row also takes the place of a newer row
        kept[key] = row
    return list(kept.values())


def settings(style: Style) -> dict[str, Any]:
    """Return matplotlib's settings for a page."""
    return {
        "figure.facecolor": style.page,
        "axes.facecolor": style.page,
        "text.color": style.text,
        "axes.labelcolor": style.text,
        "axes.edgecolor": style.grid,
        "xtick.color": style.text,
        "ytick.color": style.text,
        "grid.color": style.grid,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def draw_lengths(rows: Rows, style: Style) -> Figure:
    """Draw time against length of one sequence, forward, at the width that has most lengths."""
    single = [row for row in rows if row["B"] == "1" and row["direction"] == "forward" and is_scan(row)]
    width = max({row["D"] for row in single}, key=lambda D: len({row["L"] for row in single if row["D"] == D}))
    mine = sorted((row for row in single if row["D"] == width), key=lambda row: int(row["L"]))
    figure, axes = plt.subplots(figsize=(8, 5.2))
    newest = {row["L"]: row for row in mine}  # ours is in the row of every peer
    lengths = [int(L) for L in newest]
    ours = [float(row["ours_ms"]) for row in newest.values()]
    for column, dashes, label in (
        ("exp_floor_ms", (4, 2), "exponentials alone"),
        ("byte_floor_ms", (1, 1.5), "bytes alone"),
    ):
        floor = [float(row[column]) for row in newest.values()]
        axes.plot(lengths, floor, color=style.text, alpha=0.65, lw=1.2, dashes=dashes)
        note(axes, lengths[-1], floor[-1], f"floor: {label}", style.text)
    ends = []
    for peer in ("PyTorch scan", "FlashAttention", "mamba_ssm"):
        its = [row for row in mine if row["peer"] == peer]
        if its:
            x, y = [int(row["L"]) for row in its], [float(row["peer_ms"]) for row in its]
            axes.plot(x, y, color=style.lines[peer], marker=MARKERS[peer], ms=4.5, lw=1.8)
            ends.append((peer, x[-1], y[-1], y[-1] / float(its[-1]["ours_ms"])))  # within one run
    axes.plot(lengths, ours, color=style.lines[OURS], marker=MARKERS[OURS], ms=5.5, lw=2.4, zorder=5)
    note(axes, lengths[-1], ours[-1], OURS, style.lines[OURS], weight="bold")
    for peer, x, y, ratio in ends:
        if x < lengths[-3]:
            away = (-4.0, 12.0)
        else:  # beside the end of ours, and not on its name
            away = (8.0, (8.0 if ratio > 1 else -8.0) if x == lengths[-1] and 0.5 < ratio < 2 else 0.0)
        note(axes, x, y, f"{peer}: {ratio:,.{0 if ratio > 10 else 1}f}x our time", style.lines[peer], away=away)
    axes.set(xscale="log", yscale="log", xlabel="steps of one sequence, L", ylabel="forward pass, milliseconds")
    axes.set_xlim(lengths[0] * 0.8, lengths[-1] * 7)
    axes.xaxis.set_major_locator(FixedLocator(lengths[::2]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: binary(int(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(lw=0.6)
    heads = (
        f"FlashAttention: causal, {int(width) // 64} heads of 64. "
        if any(e[0] == "FlashAttention" for e in ends)
        else ""
    )
    what = f"The selective scan, {int(width):,} channels, {mine[0]['N']} states, {mine[0]['dtype']}, batch 1"
    finish(figure, what, f"{heads}Multiples: at the end of each line.", mine)
    return figure


def draw_shapes(rows: Rows, style: Style) -> Figure:
    """Draw ours, mamba_ssm and the floors at every shape where both were timed."""
    both = [row for row in rows if row["peer"] == "mamba_ssm" and is_scan(row)]
    shapes = list(dict.fromkeys((row["B"], row["L"], row["D"]) for row in both if row["direction"] == "backward"))
    figure, panels = plt.subplots(1, 2, figsize=(8, 0.5 * len(shapes) + 1.9), sharey=True)
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        for at, shape in enumerate(shapes):
            row = next(r for r in both if (r["B"], r["L"], r["D"]) == shape and r["direction"] == direction)
            ours, theirs, floor = float(row["ours_ms"]), float(row["peer_ms"]), slowest_floor(row)
            axes.plot([floor, theirs], [at, at], color=style.grid, lw=2, zorder=1)
            axes.plot(floor, at, "|", color=style.text, ms=11, mew=1.6, label="floor" if not at else None)
            for name, value in ((OURS, ours), ("mamba_ssm", theirs)):
                axes.plot(value, at, MARKERS[name], color=style.lines[name], ms=7, label=None if at else name)
            axes.annotate(
                f"{theirs / ours:.1f}x",
                (theirs, at),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set(xscale="log", xlabel=f"{direction}, milliseconds")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * 1.8)
        axes.grid(axis="x", lw=0.6)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(shapes)), [" x ".join(f"{int(n):,}" for n in shape) for shape in shapes])
    panels[0].set_ylabel("batch x steps x channels")
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False, loc="upper right", fontsize=9, labelcolor=style.text)
    what = (
        f"The selective scan beside mamba_ssm's CUDA kernel, {both[0]['N']} states, {both[0]['dtype']}, every switch on"
    )
    finish(
        figure, what, "Floor: the slower of bytes and exponentials alone. Multiples: mamba_ssm's time over ours.", both
    )
    return figure


def is_scan(row: dict[str, str]) -> bool:
    """Tell whether a row is one of the scan in bf16, with 16 states: what the figures show."""
    return (row["op"], row["N"], row["dtype"]) == ("selective_scan", "16", "bf16")


def slowest_floor(row: dict[str, str]) -> float:
    """Return the larger of both floors, in milliseconds."""
    return max(float(row["byte_floor_ms"]), float(row["exp_floor_ms"]))


def note(
    axes: Axes, x: float, y: float, text: str, colour: str, weight: str = "normal", away: tuple[float, float] = (8, 0)
) -> None:
    """Write what a line is, some points away from its end; to the left of it where another line passes."""
    place = {"ha": "left" if away[0] > 0 else "right", "va": "center"}
    axes.annotate(text, (x, y), away, textcoords="offset points", color=colour, weight=weight, fontsize=9.5, **place)


def finish(figure: Figure, what: str, how: str, rows: Rows) -> None:
    """Write the title, and below the axes where and when the times were taken."""
    row = rows[-1]
    dates = sorted({r["date"] for r in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    figure.suptitle(what, x=0.02, ha="left", fontsize=11, weight="bold")
    versions = f"torch {row['torch'].split('+')[0]}, triton {row['triton']}, driver {row['driver']}"
    figure.text(
        0.02, 0.015, f"{row['gpu']}, {when}, {versions}. Medians.\n{how}", fontsize=8, va="bottom", linespacing=1.4
    )
    figure.tight_layout(rect=(0, 0.075, 1, 1.0))


def binary(steps: int) -> str:
    """Write a number of steps in units of 1,024."""
    return f"{steps >> 20}M" if steps >= 1 << 20 else f"{steps >> 10}K" if steps >= 1024 else str(steps)


if __name__ == "__main__":
    sys.exit(main())
