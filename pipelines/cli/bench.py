"""`mamba-seq bench`: times beside every peer that is installed, after a check."""

import re

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._shell import Command, Settings

OPERATORS = ("selective_scan", "causal_conv1d", "block")


class _Shape(click.ParamType):
    """B, L and D with an x between them."""

    name = "shape"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", str(value))
        sizes = tuple(map(int, found.groups())) if found else ()
        if len(sizes) != 3 or 0 in sizes:
            self.fail(f"{value!r}: batch x length x channels was expected, such as 1x131072x512.", param, ctx)
        return sizes


@click.command(cls=Command)
@click.option("-o", "--output", metavar="FILE", help="Also write all rows as CSV, with machine, versions and date.")
@click.option("--quick", is_flag=True, help="Few small shapes, few runs: a first look, some 15 s on 2 CPU cores.")
@click.option(
    "--shape",
    "shapes",
    metavar="BxLxD",
    type=_Shape(),
    multiple=True,
    help="Batch, length and channels, such as 1x131072x512; may be repeated. Default: a table for the device.",
)
@click.option("--lengths", is_flag=True, help="One sequence of growing length instead of that table.")
@click.option("--d-state", metavar="N", type=click.IntRange(min=1), default=16, show_default=True, help="State size.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Default: bf16 on GPUs, fp32 on CPUs.")
@click.option(
    "--op",
    "ops",
    type=click.Choice(OPERATORS),
    multiple=True,
    help="What is timed; may be repeated. Default: all, the scan alone with --lengths.",
)
@click.option("--direction", type=click.Choice(["both", "forward", "backward"]), default="both", show_default=True)
@click.option("--peer", "peers", metavar="NAME", multiple=True, help="Only this peer; may be repeated. Default: all.")
@click.pass_obj
def bench(
    settings: Settings,
    output: str | None,
    quick: bool,
    shapes: tuple[tuple[int, int, int], ...],
    lengths: bool,
    d_state: int,
    dtype: str | None,
    ops: tuple[str, ...],
    direction: str,
    peers: tuple[str, ...],
) -> None:
    """Check the operators, then time them beside every peer that is installed.

    Peers are mamba_ssm, transformers, mambapy, the causal_conv1d package, FlashAttention of the same width, a scan in
    plain PyTorch, and our reference; on a GPU also our CPU kernels. Peers that are not installed are named. Nothing is
    timed when ours differs from the reference in float64, or a peer from ours.

    The table goes to standard output, tab-separated where that is no terminal: medians in milliseconds, the peer's time
    over ours, and the least that this machine could take for the bytes and for the exponentials.
    """
    if shapes and lengths:
        raise click.UsageError("--shape and --lengths both say which shapes; give one of them.")

    from mamba_seq.pipelines.bench import check, measure
    from mamba_seq.pipelines.bench.peers import PEERS
    from mamba_seq.pipelines.bench.plan import DIRECTIONS, DTYPES, Plan, default_dtype, default_shapes
    from mamba_seq.pipelines.bench.table import COLUMNS, about, shown, write_csv
    from mamba_seq.pipelines.output import check_output
    from mamba_seq.pipelines.runtime import start, use

    known = list(dict.fromkeys(peer.name for peer in PEERS))
    for name in peers:
        if name not in known:
            raise click.UsageError(f"no peer {name!r}; there are {', '.join(known)}.")
    if output is not None:
        check_output(output)
    device = start(settings.device, settings.threads, settings.seed)
    plan = Plan(
        ops=ops or (OPERATORS[:1] if lengths else OPERATORS),
        shapes=shapes or tuple(default_shapes(device, quick, lengths)),
        dtype=DTYPES[dtype] if dtype else default_dtype(device),
        directions=DIRECTIONS if direction == "both" else (direction,),
        N=d_state,
        peers=peers,
        quick=quick,
    )
    machine = about(device)
    rows: list[dict[str, object]] = []
    with use(device), shown(COLUMNS) as show, progress("bench:", verbosity=settings.verbosity) as tell:
        tell("the check that comes first")
        found = check(plan, device)
        for row in measure(plan, device, found, tell):
            show(row)
            rows.append({**row, **machine})
    if output is not None:
        write_csv(output, rows, (*COLUMNS, *machine))
