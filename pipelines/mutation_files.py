"""What variants change, as files: a table, the VCF with an INFO field more, and a picture of a region.

A change is the score with the alternative less the score without it. What has none is NA in the table, `.` in the VCF,
and empty in the picture.
"""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mamba_seq.data_prep.variants import BASES
from mamba_seq.data_prep.vcf import VcfFile, VcfLine
from mamba_seq.pipelines.errors import OutputError
from mamba_seq.pipelines.mutate import Effect
from mamba_seq.pipelines.output import open_outputs
from mamba_seq.pipelines.rows import MISSING, printable

HEAD = "record\tposition\tref\talt\tstatus\tscore_ref\tscore_alt\tdelta\n"
PICTURES = (".png", ".svg")
MOST_PICTURED = 5000
"""Bases of a region that can be drawn."""
INCHES_A_BASE, NARROWEST, WIDEST = 0.12, 5.0, 120.0


def write_region(target: str, picture: str | None, sites: Iterable[list[Effect]], decimals: int, what: str) -> None:
    """Write the table of a region, and a picture of it, both or none.

    Args:
        target: the table.
        picture: a .png or .svg, or None.
        sites: what may stand at each base.
        decimals: of scores.
        what: a score is, in words.
    """
    kept: list[list[Effect]] = []
    with open_outputs([target] if picture is None else [target, picture]) as sinks:
        sinks[0].write(HEAD.encode())
        for effects in sites:
            sinks[0].write("".join(_rows(effects, decimals)).encode())
            if picture is not None:
                kept.append(effects)
        if picture is not None:
            sinks[1].write(heatmap(kept, what, picture[-3:].lower()))


def write_variants(
    target: str,
    vcf_target: str | None,
    vcf: VcfFile,
    lines: Iterable[tuple[VcfLine, list[Effect]]],
    info: str,
    decimals: int,
    what: str,
) -> None:
    """Write the table of a VCF file's variants, and the file again with their changes in INFO, both or none.

    Args:
        target: the table.
        vcf_target: the file, or None.
        vcf: what was read.
        lines: of it, with what each alternative changes.
        info: name of the INFO field.
        decimals: of scores.
        what: a score is, in words.

    Raises:
        OutputError: the file has a field of this name.
    """
    if vcf_target is not None and vcf.declares(info):
        raise OutputError(f"{vcf.name} has an INFO field {info} already; name another one with --info")
    with open_outputs([target] if vcf_target is None else [target, vcf_target]) as sinks:
        sinks[0].write(HEAD.encode())
        if vcf_target is not None:
            names = vcf.header[-1]
            end = names[len(names.rstrip(b"\r\n")) :]
            declared = f'##INFO=<ID={info},Number=A,Type=Float,Description="Change of the {what}">'.encode()
            sinks[1].write(b"".join([*vcf.header[:-1], declared, end, names]))
        for line, effects in lines:
            sinks[0].write("".join(_rows(effects, decimals)).encode("utf-8", "backslashreplace"))
            if vcf_target is not None:
                values = ",".join(_number(effect.delta, decimals, ".") for effect in effects)
                sinks[1].write(line.with_info(f"{info}={values}"))


def heatmap(sites: Sequence[list[Effect]], what: str, form: str) -> bytes:
    """Draw what the bases of a region change: positions from left to right, bases from top to bottom.

    Args:
        sites: of each base of the region, in order.
        what: a score is, in words.
        form: "png" or "svg".

    Returns:
        The bytes of the file, the same for the same effects.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    changes = np.full((len(BASES), len(sites)), np.nan)
    for column, effects in enumerate(sites):
        for effect in effects:
            if effect.status == "ok":
                changes[BASES.index(effect.alt), column] = effect.delta
    known = np.abs(changes[np.isfinite(changes)])
    most = float(known.max()) if known.size and known.max() > 0 else 1.0
    first, last = sites[0][0], sites[-1][0]
    width = min(WIDEST, max(NARROWEST, 1.5 + INCHES_A_BASE * len(sites)))
    # the salt makes the names inside an SVG, which would be random
    with mpl.rc_context({"svg.hashsalt": "mamba-seq", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, 2.4), layout="constrained")
        axis = figure.subplots()
        extent = (first.position - 0.5, last.position + 0.5, len(BASES) - 0.5, -0.5)
        image = axis.imshow(
            changes, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest", extent=extent
        )
        places = [(site[0].position, BASES.index(site[0].ref)) for site in sites if site[0].ref in BASES]
        if places:
            axis.scatter([x for x, _ in places], [y for _, y in places], s=4, color="0.4", linewidths=0)
        axis.set_yticks(range(len(BASES)), BASES)
        axis.set(xlabel=printable(first.record), title="dots: the reference")
        axis.title.set(fontsize=8, color="0.4")
        axis.ticklabel_format(axis="x", useOffset=False, style="plain")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axis, label=f"change of the\n{what}", pad=0.01).ax.yaxis.label.set_fontsize(7)
        data = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(data, format=form, dpi=150, metadata=metadata)
    return data.getvalue()


def _rows(effects: Sequence[Effect], decimals: int) -> Iterator[str]:
    for effect in effects:
        numbers = (_number(x, decimals, MISSING) for x in (effect.before, effect.after, effect.delta))
        cells = (printable(effect.record), effect.position, effect.ref, printable(effect.alt), effect.status, *numbers)
        yield "\t".join(map(str, cells)) + "\n"


def _number(x: float, decimals: int, missing: str) -> str:
    return missing if math.isnan(x) else f"{round(x, decimals) + 0.0:.{decimals}f}"  # no -0
