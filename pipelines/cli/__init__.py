"""The command line, `mamba-seq`: one file a subcommand, imported when it is run.

Nothing here or in the command files imports torch, numpy or the pipelines before the arguments are parsed, so that
`--help` and a misspelt option are answered at once.
"""

import os
import sys

from mamba_seq.pipelines.cli._failures import guarded
from mamba_seq.pipelines.cli._shell import LazyGroup, Settings

SUBCOMMANDS = {
    "classify": "mamba_seq.pipelines.cli.classify:classify",
    "generate": "mamba_seq.pipelines.cli.generate:generate",
    "finetune": "mamba_seq.pipelines.cli.finetune:finetune",
    "predict": "mamba_seq.pipelines.cli.predict:predict",
    "evaluate": "mamba_seq.pipelines.cli.evaluate:evaluate",
    "score": "mamba_seq.pipelines.cli.score:score",
    "embed": "mamba_seq.pipelines.cli.embed:embed",
    "mutate": "mamba_seq.pipelines.cli.mutate:mutate",
    "calibrate": "mamba_seq.pipelines.cli.calibrate:calibrate",
    "train": "mamba_seq.pipelines.cli.train:train",
    "download": "mamba_seq.pipelines.cli.download:download",
    "zoo": "mamba_seq.pipelines.cli.zoo:zoo",
    "push": "mamba_seq.pipelines.cli.push:push",
    "export": "mamba_seq.pipelines.cli.export:export",
    "convert": "mamba_seq.pipelines.cli.convert:convert",
    "info": "mamba_seq.pipelines.cli.info:info",
    "bench": "mamba_seq.pipelines.cli.bench:bench",
}

mamba_seq = LazyGroup(
    name="mamba-seq",
    subcommands=SUBCOMMANDS,
    help="Classify DNA and generate sound with Mamba models, and train, measure and share them.\n\n"
    "Data goes to standard output, everything else to standard error. "
    "Exit codes: 0 done, 1 bad data or failure, 2 wrong usage, 130 interrupted.",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments after the program's name; None takes the process's own.

    Returns:
        0 when all is done, 1 for bad data or a failure, 2 for wrong usage, 130 after Ctrl-C.
    """
    # torch's threads wait for work spinning, which takes the cores from the threads of our kernels; read when torch is
    # imported (GNU OpenMP, GOMP_SPINCOUNT)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    arguments = sys.argv[1:] if argv is None else list(argv)
    settings = Settings()

    def call() -> None:
        with mamba_seq.make_context("mamba-seq", arguments, obj=settings) as context:
            mamba_seq.invoke(context)

    return guarded(call, settings)
