"""FASTQ in constant memory: records of four lines or wrapped ones, qualities counted and dropped."""

from collections.abc import Iterator

import numpy as np

from mamba_seq.data_prep.alphabet import DNA, Alphabet
from mamba_seq.data_prep.coded_lines import CodedLines
from mamba_seq.data_prep.errors import BadRecord, TruncatedFile
from mamba_seq.data_prep.records import WHITE_SPACE, EncodedBlock, EncodedRecord, RecordKind, SequenceRecord
from mamba_seq.data_prep.text import LONGEST_LINE, TextSource, shown

_NEWLINE, _PLUS, _AT = b"\n+@"


class FastqParser:
    """Records of a source whose cursor stands at the `@` of the first one.

    `@` and `+` may begin a quality line too, so the end of the qualities is known by their number alone, which must
    be that of the bases.
    """

    def __init__(self, source: TextSource, alphabet: Alphabet = DNA) -> None:
        self._source = source
        self._kind = RecordKind("fastq", source.name, alphabet)
        self._record: SequenceRecord | None = None
        self._split = b""  # the block whose records of four lines have been split off
        self._line_start = True
        self._bases = 0
        self._lines = 0
        self._in_sequence = False

    def records(self) -> Iterator[SequenceRecord]:
        """One record after another; each is read to its end before the next.

        Raises:
            BadRecord: A record does not begin with `@`, or has more or fewer qualities than bases.
            TruncatedFile: The last record stops before its end.
        """
        source, kind = self._source, self._kind
        while source.skip_blank():
            if source.data[source.pos] != _AT:
                came = shown(source.data[source.pos : source.pos + 100])
                raise BadRecord(
                    f"{source.name}: after record {self._name!r} the next FASTQ record should begin with '@', "
                    f"but {came} came; check the file around this record"
                )
            if source.data is not self._split:
                self._split = source.data
                yield from self._whole_records()
                continue
            if len(source.data) - source.pos < LONGEST_LINE and source.fill():
                continue  # the record may be in one piece with the next block
            source.begin_record()
            source.pos += 1
            header = source.line()
            self._line_start, self._in_sequence, self._bases, self._lines = True, True, 0, 0
            self._record = SequenceRecord(header, kind, next_chunk=self._next_chunk)
            yield self._record
            self._record.skip()

    def _whole_records(self) -> Iterator[SequenceRecord]:
        """Records of four lines that lie in one block, as most do: encoded at once, up to the first of another form."""
        source, kind, record = self._source, self._kind, self._record
        begin = source.pos
        text = source.data[begin : source.data.rfind(b"\n", begin) + 1]
        lines = CodedLines(text, kind)
        n = len(lines.ends) // 4
        if not n:
            return
        codes, clean, unknown = lines.encode()
        starts, ends, first = (each[: 4 * n].reshape(n, 4).T for each in (lines.starts, lines.ends, lines.first))
        lengths = ends - starts
        fits = (first[0] == _AT) & (first[2] == _PLUS) & (lengths[1] == lengths[3])
        n = n if fits.all() else int(fits.argmin())
        encoded = clean[1 : 4 * n : 4] & (lengths[1][:n] > 0)
        known = np.where(encoded, lengths[1][:n] - unknown[1 : 4 * n : 4], -1).tolist()
        names = np.minimum(ends[0], starts[0] + 1 + LONGEST_LINE)
        letters = starts[1][:n], ends[1][:n]
        block = EncodedBlock(kind, text, codes, (starts[0][:n] + 1, names[:n]), letters, known)
        copy, end = source.copy, 0
        for index, following, count in zip(range(n), (ends[3][:n] + 1).tolist(), known, strict=True):
            if count >= 0:
                record = EncodedRecord(block, index)
            else:
                whole = text[block.first[index] : block.last[index]]
                if b" " in whole or b"\t" in whole:
                    break
                record = SequenceRecord(block.header(index), kind, whole)
            if copy is not None:
                copy(text[end:following])
            end = following
            source.ahead = -end
            yield record
        source.pos, source.ahead, self._record = begin + end, 0, record

    def _next_chunk(self) -> bytes:
        """More of the record's sequence lines; at their end the qualities are passed and nothing is returned."""
        if not self._in_sequence:
            return b""
        source = self._source
        if source.at_end():
            raise self._truncated("in its sequence")
        data, pos = source.data, source.pos
        if self._line_start and data[pos] == _PLUS:
            self._in_sequence = False
            source.line()
            self._pass_qualities()
            source.end_record()
            return b""
        end = data.find(b"\n+", pos)
        chunk = data[pos : end + 1] if end >= 0 else data[pos:]
        source.pos = pos + len(chunk)
        self._line_start = chunk[-1] == _NEWLINE
        self._lines += chunk.count(b"\n")
        self._bases += len(chunk.translate(None, WHITE_SPACE))
        return chunk

    def _pass_qualities(self) -> None:
        source, found, lines = self._source, 0, 0
        if not self._bases:
            if not source.at_end() and source.data[source.pos] == _NEWLINE:
                source.pos += 1
            return
        while found < self._bases or lines == 0:
            if source.at_end():
                if found < self._bases:
                    raise self._truncated(f"in its qualities, {found} of {self._bases}")
                return
            end = source.data.find(b"\n", source.pos)
            found += (end if end >= 0 else len(source.data)) - source.pos
            source.pos = end + 1 if end >= 0 else len(source.data)
            lines += end >= 0
            wrapped = self._lines > 1
            if found > self._bases or (lines and not wrapped and found != self._bases):
                count = f"more than {self._bases}" if found > self._bases else str(found)
                raise BadRecord(
                    f"{source.name}: FASTQ record {self._name!r} has {self._bases} bases and {count} qualities, one a "
                    "base was expected; check the file around this record"
                )

    @property
    def _name(self) -> str:
        return self._record.name if self._record is not None else ""

    def _truncated(self, where: str) -> TruncatedFile:
        return TruncatedFile(
            f"{self._source.name} is truncated: its last FASTQ record {self._name!r} stops {where}; "
            "copy or download the file again"
        )
