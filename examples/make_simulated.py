"""Write bacteria_simulated.fa.gz: sequences drawn from Markov chains of real genomes, none of which they contain.

    python examples/make_simulated.py DATA/bacteria examples/bacteria_simulated.fa.gz

DATA/bacteria holds a folder a species with one or more FASTA files; the first file of each is used. The same data and
seed give the same file, byte for byte.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

from mamba_seq.data_prep.alphabet import Codes, decode
from mamba_seq.data_prep.genomes import genome_files
from mamba_seq.data_prep.sequences import read_sequences
from mamba_seq.data_prep.simulate import MarkovChain, shares_kmer

ORDER = 8
LENGTHS = (3_000, 20_000)
LONGEST_SHARED = 32
WIDTH = 80


def main() -> None:
    """Fit a chain to each species, draw a short and a long sequence, and write them in random order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder of FASTA files for each species")
    parser.add_argument("out", type=Path, help="gzip-compressed FASTA to write")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sequences and their order")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    records = [
        record for label, paths in genome_files(arguments.data).items() for record in simulate(label, paths[0], rng)
    ]
    text = "".join(records[i] for i in rng.permutation(len(records)))
    arguments.out.write_bytes(gzip.compress(text.encode("ascii"), mtime=0))
    print(f"{len(records)} sequences in {arguments.out}")


def simulate(label: str, path: Path, rng: np.random.Generator) -> list[str]:
    """FASTA records of sequences like one genome, checked to share no 32 bases in a row with it."""
    genome: list[tuple[str, Codes]] = [(record.name, record.codes()) for record in read_sequences(path)]
    sequences = [codes for _, codes in genome]
    accession = max(genome, key=lambda item: len(item[1]))[0]
    chain = MarkovChain.fit(sequences, ORDER)
    species = label.replace("_", " ").capitalize()
    records = []
    for number, about in enumerate(LENGTHS, start=1):
        codes = chain.sample(round(about * rng.uniform(0.95, 1.05)), rng)
        if shares_kmer(codes, sequences, LONGEST_SHARED):
            raise SystemExit(f"{label}: {LONGEST_SHARED} bases in a row stand in the genome too; take another seed")
        letters = decode(codes)
        lines = [letters[i : i + WIDTH] for i in range(0, len(letters), WIDTH)]
        header = f">sim_{label}_{number} simulated from an order-{ORDER} Markov chain of {species} ({accession})"
        records.append("\n".join([header, *lines]) + "\n")
    return records


if __name__ == "__main__":
    main()
