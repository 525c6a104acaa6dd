import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from Bio import bgzf

from mamba_seq.data_prep.compression import open_input
from mamba_seq.data_prep.errors import DataError, EmptyFile, NotText, TruncatedFile, UnreadableFile
from mamba_seq.data_prep.sequences import read_sequences

TEXT = b">a\n" + np.random.default_rng(0).choice(np.frombuffer(b"ACGT\n", np.uint8), 300_000).tobytes()


def bgzip(text: bytes) -> bytes:
    out = io.BytesIO()
    writer = bgzf.BgzfWriter(fileobj=out)
    writer.write(text)
    writer._buffer and writer.flush()
    writer._handle.write(bgzf._bgzf_eof)
    return out.getvalue()


PACK = {
    "plain": lambda text: text,
    "gzip": gzip.compress,
    "bgzip": bgzip,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
PACKED = [name for name in PACK if name != "plain"]


@pytest.mark.parametrize("kind", PACK)
def test_whatever_the_name_says_the_content_decides(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "reads.zip"
    path.write_bytes(PACK[kind](TEXT))
    with open_input(path) as stream:
        assert stream.read() == TEXT


@pytest.mark.parametrize("kind", PACKED)
def test_all_members_are_read_and_zero_padding_is_legal(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACK[kind](TEXT) + PACK[kind](b"") + PACK[kind](b">b\nAC\n") + bytes(100_000))
    with open_input(path) as stream:
        assert stream.read() == TEXT + b">b\nAC\n"


@pytest.mark.parametrize("kind", PACKED)
def test_something_else_after_the_last_member_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACK[kind](TEXT) + b">b\nACGT\n")
    with pytest.raises(TruncatedFile, match=r"goes on after the end .*\(b'>b"), open_input(path) as stream:
        stream.read()


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("cut", [7, 0.5, -1])
def test_a_truncated_stream_is_an_error_that_names_the_file(tmp_path: Path, kind: str, cut: float) -> None:
    packed = PACK[kind](TEXT)
    if kind == "bgzip":
        packed = packed[:-28]  # less the empty last block, which is a member of its own
    path = tmp_path / "x"
    path.write_bytes(packed[: int(len(packed) * cut)] if isinstance(cut, float) else packed[:cut])
    with pytest.raises(TruncatedFile, match="is truncated") as caught:
        list(read_sequences(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["gzip", "bgzip", "bzip2", "xz"])
def test_damaged_bytes_are_an_error(tmp_path: Path, kind: str) -> None:
    packed = bytearray(PACK[kind](TEXT))
    packed[len(packed) // 2] ^= 0xFF
    packed[len(packed) // 2 + 1] ^= 0xFF
    path = tmp_path / "x"
    path.write_bytes(packed)
    with pytest.raises(TruncatedFile, match=r"damaged|truncated"), open_input(path) as stream:
        stream.read()


@pytest.mark.parametrize("kind", PACK)
def test_standard_input_through_a_pipe(kind: str) -> None:
    code = (
        "from mamba_seq.data_prep.sequences import read_sequences\n"
        "print([(r.name, sum(map(len, r.blocks()))) for r in read_sequences('-')])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=PACK[kind](TEXT), capture_output=True, check=True)
    letters = len(TEXT) - 3 - TEXT.count(b"\n") + 1
    assert done.stdout.decode().strip() == str([("a", letters)])


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_compressed_runs_stay_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    size = 80_000_000 if kind == "zstd" else 30_000_000
    path.write_bytes(PACK[kind](b">n\n" + b"N" * size))
    tracemalloc.start()
    try:
        (length,) = [sum(map(len, record.blocks())) for record in read_sequences(path)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == size
    assert peak < (50e6 if kind == "zstd" else 15e6)


@pytest.mark.parametrize("kind", PACKED)
def test_nothing_compressed_is_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACK[kind](b""))
    with pytest.raises(EmptyFile):
        list(read_sequences(path))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", EmptyFile, "0 bytes came"),
        (b"PK\x03\x04rest", NotText, "zip archive"),
        (b"\x1f\x9drest", NotText, "uncompress"),
        (b"%PDF-1.7", NotText, "PDF"),
        (b"\x1f\x8b", TruncatedFile, "truncated"),
    ],
)
def test_refusals(tmp_path: Path, content: bytes, error: type[DataError], message: str) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        list(read_sequences(path))
    assert str(path) in str(caught.value)


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        open_input(tmp_path / "none.fa")
    with pytest.raises(UnreadableFile, match="is a folder"):
        open_input(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nA\n")
    path.chmod(0)
    with pytest.raises(UnreadableFile, match="chmod"):
        open_input(path)


def test_gzip_of_old_zlib_levels_and_names(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with gzip.GzipFile(path, "wb", compresslevel=zlib.Z_BEST_SPEED) as file:
        file.write(TEXT)
    with open_input(path) as stream:
        assert stream.read() == TEXT
