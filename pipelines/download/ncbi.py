"""Where NCBI keeps the files of an assembly, and what its tables say.

The tree of NCBI's genomes site is used, not the packages of NCBI Datasets (genome/accession/{accession}/download): a
package is a zip archive made on request, which cannot be resumed but as a list of single files (issues 83 and 582 of
github.com/ncbi/datasets), while the files of the tree lie on a web server as they are, where clients resume them
(taxonomizr's resumableDownload), with MD5 checksums beside them (www.ncbi.nlm.nih.gov/genome/doc/ftpfaq).

- The folder of GCF_028858775.2 is genomes/all/GCF/028/858/775/GCF_028858775.2_<name>/ (README of
  ftp.ncbi.nlm.nih.gov/genomes/all). The name is read from the listing, since NCBI has changed names under the same
  accession: this one's was NHGRI_mPanTro3-v2.0_pri and is NHGRI_mPanTro3-v2.1_pri.
- In it md5checksums.txt has lines `<md5>  ./<file>`, among them <folder>_genomic.fna.gz and
  <folder>_assembly_report.txt.
- The report has a line a sequence after the comments, with tabs between: Sequence-Name, Sequence-Role,
  Assigned-Molecule, Assigned-Molecule-Location/Type, GenBank-Accn, Relationship, RefSeq-Accn, Assembly-Unit,
  Sequence-Length, UCSC-style-name. The records of the FASTA file are named by RefSeq-Accn in assemblies of RefSeq
  (GCF), by GenBank-Accn in those of GenBank (GCA).
"""

import html
import re
import urllib.parse
from dataclasses import dataclass

from mamba_seq.pipelines.download.lists import Assembly
from mamba_seq.pipelines.download.transfer import DownloadError, read_small

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/genomes/all"
CHECKSUMS = "md5checksums.txt"
_ROLE, _MOLECULE, _TYPE, _GENBANK, _REFSEQ, _LENGTH = 1, 2, 3, 4, 6, 8


@dataclass(frozen=True)
class Remote:
    """A file of an assembly on the server: its address, its name, and its MD5 checksum, in hexadecimal."""

    url: str
    name: str
    md5: str


@dataclass(frozen=True)
class AssemblyFiles:
    """Where the sequences of an assembly are, and its report of them."""

    fasta: Remote
    report: Remote


@dataclass(frozen=True)
class Chromosome:
    """A chromosome of an assembly: its name there, the name of its FASTA record, and its number of bases."""

    molecule: str
    record: str
    length: int


def find_files(assembly: Assembly, base_url: str) -> AssemblyFiles:
    """Ask the server where the files of an assembly are, and for their checksums.

    Raises:
        DownloadError: the server cannot be reached, or does not have the assembly or a file of it.
    """
    folder = _folder(assembly, base_url)
    name = urllib.parse.unquote(folder.rstrip("/").rpartition("/")[2])
    url = folder + CHECKSUMS
    checksums = {}
    for line in read_small(url).splitlines():
        md5, _, file = line.strip().partition(" ")
        if re.fullmatch("[0-9a-fA-F]{32}", md5):
            checksums[file.strip().removeprefix("./")] = md5.lower()

    def remote(suffix: str) -> Remote:
        file = name + suffix
        if file not in checksums:
            raise DownloadError(
                f"{url} has no checksum of {file}; the server has no such file of {assembly.accession}, or another "
                "layout than NCBI's; try another version of the assembly, or another --base-url"
            )
        return Remote(folder + urllib.parse.quote(file), file, checksums[file])

    return AssemblyFiles(remote("_genomic.fna.gz"), remote("_assembly_report.txt"))


def chromosomes(report: str, assembly: Assembly) -> list[Chromosome]:
    """Read the chromosomes of an assembly from its report, without mitochondria, plasmids and unplaced sequences.

    Raises:
        DownloadError: the report is none.
    """
    column = _REFSEQ if assembly.accession.startswith("GCF") else _GENBANK
    found = []
    for line in report.splitlines():
        fields = line.split("\t")
        if line.startswith("#") or not line.strip():
            continue
        if len(fields) <= _LENGTH or not fields[_LENGTH].isdecimal():
            raise DownloadError(
                f"the assembly report of {assembly.accession} has the line {line[:80]!r}; at least {_LENGTH + 1} "
                "columns with a length in the last of them were expected"
            )
        if fields[_ROLE] == "assembled-molecule" and fields[_TYPE] == "Chromosome" and fields[column] != "na":
            found.append(Chromosome(fields[_MOLECULE], fields[column], int(fields[_LENGTH])))
    return found


def _folder(assembly: Assembly, base_url: str) -> str:
    """The address of the assembly's folder, with a slash at its end."""
    prefix, digits = assembly.accession[:3], assembly.accession[4:13]
    above = f"{base_url.rstrip('/')}/{prefix}/{digits[:3]}/{digits[3:6]}/{digits[6:]}/"
    names = set()
    for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", read_small(above), re.IGNORECASE):
        name = urllib.parse.unquote(html.unescape(link)).rstrip("/").rpartition("/")[2]
        if re.fullmatch(re.escape(assembly.accession) + r"_[^/?#\s]+", name):
            names.add(name)
    if not names:
        raise DownloadError(
            f"{above} lists no folder of {assembly.accession}; check the accession and its version, which NCBI may "
            "have withdrawn (https://www.ncbi.nlm.nih.gov/datasets/genome)"
        )
    # the same sequences under two names, while NCBI renames an assembly
    return above + urllib.parse.quote(max(names)) + "/"
