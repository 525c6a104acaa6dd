"""Golden tables of classify, the same bytes for every number of threads and size of batch."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"

CASES = {
    "mixed.tsv": ["mixed.fa"],
    "mixed.jsonl": ["mixed.fa", "--format", "jsonl"],
    "mixed.forward.tsv": ["mixed.fa", "--strand", "forward"],
    "mixed.threshold.tsv": ["mixed.fa", "--min-probability", "0.6", "--min-length", "30"],
    "mixed.stride.tsv": ["mixed.fa", "--context", "50", "--stride", "17", "--max-windows", "0"],
    "mixed.few_windows.tsv": ["mixed.fa", "--max-windows", "3"],
    "reads.tsv": ["reads.fq"],
    "both_files.tsv": ["reads.fq", "mixed.fa"],
}


@pytest.fixture
def arguments(fake: Any, request: pytest.FixtureRequest) -> list[str]:
    words = CASES[request.param]
    return [str(GOLDEN / word) if (GOLDEN / word).is_file() else word for word in words]


@pytest.mark.parametrize(
    "how",
    [[], ["--threads", "1"], ["--threads", "2"], ["--batch-tokens", "1"], ["--batch-tokens", "700"]],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("name", "arguments"), [(name, name) for name in CASES], indirect=["arguments"], ids=list(CASES)
)
def test_golden(golden: Callable[..., None], name: str, arguments: list[str], how: list[str]) -> None:
    golden(name, "classify", *arguments, *how)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
@pytest.mark.usefixtures("fake")
def test_compressed_input_under_any_name(golden: Callable[..., None], tmp_path: Path, pack: Any) -> None:
    source = tmp_path / "mixed.fa"
    source.write_bytes(pack((GOLDEN / "mixed.fa").read_bytes()))
    golden("mixed.tsv", "classify", source)


@pytest.mark.usefixtures("fake")
def test_crlf_and_one_line_a_record_change_nothing(golden: Callable[..., None], tmp_path: Path) -> None:
    text = (GOLDEN / "mixed.fa").read_text()
    (tmp_path / "crlf.fa").write_text(text, newline="\r\n")
    golden("mixed.tsv", "classify", tmp_path / "crlf.fa")
    records = [record.partition("\n") for record in text.split(">")[1:]]
    unwrapped = "".join(f">{header}\n{body.replace(chr(10), '')}\n" for header, _, body in records)
    (tmp_path / "unwrapped.fa").write_text(unwrapped)
    golden("mixed.tsv", "classify", tmp_path / "unwrapped.fa")


@pytest.mark.usefixtures("fake")
def test_output_file_holds_what_stdout_would(run: Any, tmp_path: Path) -> None:
    plain, packed = tmp_path / "out.tsv", tmp_path / "out.tsv.gz"
    for target in (plain, packed):
        result = run("classify", GOLDEN / "mixed.fa", "-o", target)
        assert (result.code, result.out) == (0, "")
    expected = (GOLDEN / "mixed.tsv").read_bytes()
    assert plain.read_bytes() == expected
    assert gzip.decompress(packed.read_bytes()) == expected
