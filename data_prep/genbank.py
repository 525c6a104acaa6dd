"""GenBank flat files in constant memory: the sequence under ORIGIN, named by VERSION or else by LOCUS."""

from collections.abc import Iterator

from mamba_seq.data_prep.alphabet import DNA, Alphabet
from mamba_seq.data_prep.errors import BadRecord, TruncatedFile
from mamba_seq.data_prep.records import WHITE_SPACE, RecordKind, SequenceRecord
from mamba_seq.data_prep.text import TextSource, shown

_NEWLINE, _SLASH = b"\n/"
_END = b"//"


class GenbankParser:
    """Records of a source whose cursor stands at the first LOCUS line.

    A record without ORIGIN is empty. One that instead says of which other records it is put together (CONTIG), as NCBI
    sends genomes unless asked for the full record, is refused: its sequence is elsewhere.
    """

    def __init__(self, source: TextSource, alphabet: Alphabet = DNA) -> None:
        self._source = source
        self._kind = RecordKind("genbank", source.name, alphabet, WHITE_SPACE + b"0123456789")
        self._name = ""
        self._line_start = True

    def records(self) -> Iterator[SequenceRecord]:
        """One record after another; each is skipped to its end before the next.

        Raises:
            BadRecord: A record does not begin with LOCUS, or names its parts (CONTIG) instead of its sequence.
            TruncatedFile: The last record has no `//` line.
        """
        source = self._source
        while source.skip_blank():
            source.begin_record()
            header, has_sequence = self._header()
            self._line_start = True
            if has_sequence:
                record = SequenceRecord(header, self._kind, next_chunk=self._next_chunk)
            else:
                source.end_record()
                record = SequenceRecord(header, self._kind, whole=b"")
            yield record
            record.skip()

    def _header(self) -> tuple[bytes, bool]:
        """The record's name and definition in one line, and whether a sequence follows."""
        source = self._source
        first = source.line()
        if not first.startswith(b"LOCUS"):
            raise BadRecord(
                f"{source.name}: after record {self._name!r} the next GenBank record should begin with LOCUS, "
                f"but {shown(first)} came; check the file around this record"
            )
        name = first[5:].split()[:1]
        definition: list[bytes] = []
        keyword, elsewhere = b"", b""
        while not source.at_end():
            line = source.line()
            keyword = line[:12].strip() or keyword
            if keyword == b"DEFINITION":
                definition += line[12:].split()
            elif keyword == b"VERSION":
                name = line[12:].split()[:1] or name
            elif keyword in (b"CONTIG", b"WGS"):
                elsewhere = elsewhere or keyword
            elif keyword == b"ORIGIN" or line.startswith(_END):
                self._name = b"".join(name).decode("utf-8", "replace")
                if keyword != b"ORIGIN" and elsewhere:
                    raise self._without_sequence(elsewhere.decode())
                return b" ".join([*name, *definition]), keyword == b"ORIGIN"
        raise self._truncated()

    def _next_chunk(self) -> bytes:
        source = self._source
        if source.at_end():
            raise self._truncated()
        data, pos = source.data, source.pos
        if self._line_start and data[pos] == _SLASH:
            source.line()
            source.end_record()
            return b""
        end = data.find(b"\n/", pos)
        chunk = data[pos : end + 1] if end >= 0 else data[pos:]
        source.pos = pos + len(chunk)
        self._line_start = chunk[-1] == _NEWLINE
        return chunk

    def _without_sequence(self, keyword: str) -> BadRecord:
        return BadRecord(
            f"{self._source.name}: GenBank record {self._name!r} has no sequence: a {keyword} line that names other "
            "records came where ORIGIN was expected; get the full record (in NCBI's browser 'GenBank (full)', through "
            "efetch rettype=gbwithparts), or its FASTA"
        )

    def _truncated(self) -> TruncatedFile:
        return TruncatedFile(
            f"{self._source.name} is truncated: its last GenBank record {self._name!r} has no // line; "
            "copy or download the file again"
        )
