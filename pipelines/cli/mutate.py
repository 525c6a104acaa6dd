"""`mamba-seq mutate`: what variants change in the eyes of a model."""

import re
from typing import TYPE_CHECKING, Any

import click

from mamba_seq.pipelines.cli._messages import progress
from mamba_seq.pipelines.cli._options import strand_option, window_length
from mamba_seq.pipelines.cli._shell import Command, Settings

if TYPE_CHECKING:
    from mamba_seq.pipelines.mutate import Summary
    from mamba_seq.pipelines.variant_scores import WindowScorer

_AT_LEAST_1 = click.IntRange(min=1)
_FIELD = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")  # of INFO: VCFv4.3, section 1.6.1


@click.command(cls=Command)
@click.argument("fasta", metavar="FASTA")
@click.option(
    "-m", "--model", metavar="MODEL", required=True, help="A zoo name, the folder of a saved model, or a hub id."
)
@click.option(
    "--region", metavar="NAME:START-END", help="Put every base in place of each of these, 1-based, inclusive."
)
@click.option("--vcf", metavar="FILE", help="Score the variants of a VCF file, compressed or not; - is standard input.")
@click.option("-o", "--output", metavar="FILE", default="-", help="Table to write. Default: -, standard output.")
@click.option("--vcf-out", metavar="FILE", help="Write the VCF again, with the changes in INFO.")
@click.option("--info", metavar="NAME", default="MAMBA_SEQ_DELTA", show_default=True, help="Name of that INFO field.")
@click.option("--picture", metavar="FILE", help="Draw the region, position by base: .png or .svg.")
@click.option("--label", metavar="NAME", help="The class whose score is taken, of a classifier.")
@click.option(
    "--score",
    type=click.Choice(["log-odds", "probability"]),
    help="Of that class. Default: log-odds, in nats. A language model's is ln of the window's probability.",
)
@strand_option
@click.option("--context", metavar="N", type=_AT_LEAST_1, help="Bases of a window. Default: the model's.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do with variants whose record, place or REF the FASTA file does not have.",
)
@click.option(
    "--batch-tokens",
    metavar="N",
    type=_AT_LEAST_1,
    help="Bases that go through the model at once; less takes less memory. Default: by model and device.",
)
@click.pass_obj
def mutate(
    settings: Settings,
    fasta: str,
    model: str,
    region: str | None,
    vcf: str | None,
    output: str,
    vcf_out: str | None,
    info: str,
    picture: str | None,
    label: str | None,
    score: str | None,
    strand: str | None,
    context: int | None,
    on_mismatch: str,
    batch_tokens: int | None,
) -> None:
    """Say what variants of FASTA (plain or bgzip) change: every base of a region, or those of a VCF file.

    The score of the window around a variant, with it less without it: ln of the window's probability under a language
    model, the log-odds or the probability of a class under a classifier. The window holds as many bases as the context,
    on both sides of the variant alike, fewer where the record ends.
    """
    if (region is None) == (vcf is None):
        raise click.UsageError("give --region or --vcf, one of them.")
    if vcf is None and vcf_out is not None:
        raise click.UsageError("--vcf-out goes with --vcf.")
    if region is None and picture is not None:
        raise click.UsageError("--picture goes with --region.")
    if picture is not None and not picture.lower().endswith((".png", ".svg")):
        raise click.UsageError(f"--picture {picture}: a name that ends in .png or .svg was expected.")
    if not _FIELD.fullmatch(info):
        raise click.UsageError(f"--info {info}: letters, digits, _ and . were expected, a letter or _ first.")
    if fasta == "-":
        raise click.UsageError("FASTA is read at random places: name a file, not standard input.")

    import contextlib
    import logging

    from mamba_seq.data_prep.variants import Reference
    from mamba_seq.data_prep.vcf import VcfFile
    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.inputs import check_inputs
    from mamba_seq.pipelines.mutate import Mutator
    from mamba_seq.pipelines.mutation_files import MOST_PICTURED, write_region, write_variants
    from mamba_seq.pipelines.output import check_outputs
    from mamba_seq.pipelines.runtime import start

    inputs = tuple(name for name in (fasta, vcf) if name is not None)
    check_inputs(inputs)
    check_outputs([name for name in (output, vcf_out, picture) if name is not None], inputs)
    device = start(settings.device, settings.threads, settings.seed)
    loaded = models.load_variant_model(model, device)
    reference = Reference(fasta, window_length(context, model, loaded.config.context))
    longest = loaded.config.positions
    if longest is not None and reference.context > longest:
        raise click.UsageError(f"model {model} knows {longest} positions; give a --context of no more.")
    chosen = None if region is None else reference.region(region)
    if picture is not None and chosen is not None and chosen.end - chosen.start > MOST_PICTURED:
        raise click.UsageError(
            f"--picture: {chosen.end - chosen.start:,} bases came, at most {MOST_PICTURED:,} can be drawn."
        )
    both = models.strands_of(model, loaded.config, strand) == "both"
    scorer = _scorer(loaded, model, device, label, score, both, batch_tokens)
    with progress("mutating", verbosity=settings.verbosity) as show:

        def tell(summary: "Summary") -> None:
            show(f"{summary.sites:,} places", summary.done)

        mutator = Mutator(reference, scorer, longest, tell)
        if chosen is not None:
            write_region(output, picture, mutator.region(chosen), scorer.decimals, scorer.what)
        else:
            assert vcf is not None
            with contextlib.closing(VcfFile(vcf)) as variants:
                lines = mutator.variants(variants, on_mismatch)  # type: ignore[arg-type]
                write_variants(output, vcf_out, variants, lines, info, scorer.decimals, scorer.what)
    logging.getLogger("mamba_seq.pipelines").info("%s", mutator.summary)


def _scorer(
    loaded: Any, model: str, device: Any, label: str | None, score: str | None, both: bool, batch_tokens: int | None
) -> "WindowScorer":
    """Return what scores windows, after a check that the options are those of the model."""
    from mamba_seq.heads import LanguageModel
    from mamba_seq.pipelines import models
    from mamba_seq.pipelines.variant_scores import ClassScores, LikelihoodScores

    if isinstance(loaded, LanguageModel):
        if label is not None or score is not None:
            raise click.UsageError(f"model {model} is a language model: --label and --score are of classifiers.")
        return LikelihoodScores(loaded, device, both, batch_tokens)
    labels = loaded.config.labels
    if label not in labels:
        what = "name a class with --label" if label is None else f"--label {label} is none of its classes"
        raise click.UsageError(f"model {model} is a classifier: {what}, of {', '.join(labels)}.")
    calibration = models.calibration_of(model, loaded.config)
    number = labels.index(label)
    kind: Any = score or "log-odds"
    return ClassScores(loaded, device, number, kind, both, batch_tokens, calibration)
