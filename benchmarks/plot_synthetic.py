"""Draw accuracy against length on the synthetic tasks, a line a run, from saved results.

    python benchmarks/plot_synthetic.py [--gpu h200] [--output docs/figures]

`synthetic_<gpu>`: `results/induction_heads_<gpu>.csv` on the left, `results/selective_copying_<gpu>.csv` on the right.
It is drawn twice, for a light and a dark page.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from plot_scan import HERE, STYLES, Rows, Style, binary, read, save, settings

TASKS = {"induction_heads": ("Induction heads", 15), "selective_copying": ("Selective copying", 14)}
"""Title, and how many answers there are to guess from."""
MARKERS = "osD^vP"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h200", help="end of the names of the result files")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "figures")
    asked = parser.parse_args(arguments)
    rows = {task: read(HERE / "results" / f"{task}_{asked.gpu}.csv") for task in TASKS}
    asked.output.mkdir(parents=True, exist_ok=True)
    for page, style in STYLES.items():
        with plt.rc_context(settings(style)):
            figure = draw(rows, style)
            path = asked.output / f"synthetic_{asked.gpu}.{page}.png"
            save(figure, path)
            plt.close(figure)
        print(f"{path}: {path.stat().st_size / 1000:.0f} KB")
    return 0


def draw(rows: dict[str, Rows], style: Style) -> Figure:
    """Draw a panel a task."""
    figure, panels = plt.subplots(1, len(TASKS), figsize=(9, 3.9), sharey=True)
    for axes, (task, (title, answers)) in zip(panels, TASKS.items(), strict=True):
        draw_task(axes, rows[task], style)
        axes.axhline(100 / answers, color=style.text, alpha=0.65, lw=1, dashes=(1, 1.5))
        axes.set_title(title, loc="left", fontsize=10.5, weight="bold", color=style.text)
        axes.set_xlabel("length of the test samples")
    panels[0].set(ylabel="right answers, %", ylim=(-3, 103))
    row = rows["induction_heads"][-1]
    how = "Dashed: the length of training. Dotted: guessing. A line is one run, failed ones included."
    figure.text(
        0.02,
        0.015,
        f"{row['hardware']}, {row['date']}, {row['versions']}.\n{how}",
        fontsize=8,
        va="bottom",
        linespacing=1.4,
    )
    figure.tight_layout(rect=(0, 0.1, 1, 1.0))
    return figure


def draw_task(axes: Axes, rows: Rows, style: Style) -> None:
    """Draw a line a run."""
    lengths = sorted({int(row["length"]) for row in rows})
    colours = list(style.lines.values())
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        its = [row for row in rows if row["run"] == run]
        label = f"seed {its[0]['seed']}, rate {float(its[0]['lr']):g}, dt from {float(its[0]['dt_min']):.0e}"
        axes.plot(
            [int(row["length"]) for row in its],
            [100 * float(row["accuracy"]) for row in its],
            color=colours[number % len(colours)],
            marker=MARKERS[number % len(MARKERS)],
            ms=9 - 1.5 * number,  # equal lines are seen through each other
            mfc="none",
            lw=1.6,
            label=label,
        )
    axes.axvline(int(rows[0]["trained_at"]), color=style.text, alpha=0.65, lw=1, dashes=(4, 2))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths[::2]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: binary(int(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(lw=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=style.text, loc="center left")


if __name__ == "__main__":
    sys.exit(main())
