"""FASTA in constant memory: neither a line nor a record is ever held whole unless it fits in one block."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mamba_seq.data_prep.alphabet import DNA, Alphabet
from mamba_seq.data_prep.coded_lines import CodedLines
from mamba_seq.data_prep.records import EncodedBlock, EncodedRecord, RecordKind, SequenceRecord
from mamba_seq.data_prep.text import LONGEST_LINE, TextSource

_NEWLINE, _COMMENT, _HEADER = b"\n;>"


class FastaParser:
    """Records of a source whose cursor stands at the `>` of the first header.

    A header begins at `>` at the start of a line; lines that begin with `;` are comments; blank lines and white
    space within sequence lines mean nothing.
    """

    def __init__(self, source: TextSource, alphabet: Alphabet = DNA) -> None:
        self._source = source
        self._kind = RecordKind("fasta", source.name, alphabet)
        self._line_start = True
        self._in_comment = False

    def records(self) -> Iterator[SequenceRecord]:
        """One record after another; each is skipped to its end before the next."""
        source, kind = self._source, self._kind
        while not source.at_end():
            last = source.data.rfind(b"\n>", source.pos)
            if last >= 0:
                text = source.data[source.pos : last + 1]
                source.pos = last + 1
                yield from self._short_records(text) or self._whole_records(text)
                continue
            source.begin_record()
            source.pos += 1
            header = source.line()
            self._line_start, self._in_comment = True, False
            record = SequenceRecord(header, kind, next_chunk=self._next_chunk)
            yield record
            record.skip()
            source.end_record()

    def _whole_records(self, text: bytes) -> Iterator[SequenceRecord]:
        """Records that lie in one block: split at once, because a file may hold millions of short ones."""
        source, kind = self._source, self._kind
        has_comments = _has_comments(text)
        source.ahead = len(text) + 1  # the last part still has its line end
        for part in text[1:].split(b"\n>"):
            source.ahead -= len(part) + 2
            if source.copy is not None:
                source.copy(b">%b\n" % part.removesuffix(b"\n"))
            header, _, whole = part.partition(b"\n")
            if has_comments:
                self._line_start, self._in_comment = True, False
                whole = self._without_comments(whole, line_start=True)
            yield SequenceRecord(header[:LONGEST_LINE], kind, whole)
        source.ahead = 0

    def _short_records(self, text: bytes) -> Iterator[SequenceRecord] | None:
        """The same for records that mostly have their letters on one line, encoded at once; None for others."""
        lines = CodedLines(text, self._kind)
        headers = np.flatnonzero(lines.first == _HEADER)
        if len(lines.ends) > 4 * len(headers) or _has_comments(text):
            return None
        return self._records_of(lines, headers)

    def _records_of(self, lines: CodedLines, headers: NDArray[np.int64]) -> Iterator[SequenceRecord]:
        source, kind, text = self._source, self._kind, lines.text
        codes, clean, unknown = lines.encode()
        starts, names = lines.starts[headers], lines.ends[headers]
        after = np.append(starts[1:], len(text))
        letters = np.minimum(headers + 1, len(clean) - 1)
        ends = lines.ends[letters]
        # an empty line of letters is left to the other way, as are records of more lines or of none
        encoded = clean[letters] & (ends + 1 == after) & (ends > names + 1)
        known = np.where(encoded, ends - names - 1 - unknown[letters], -1).tolist()
        begin = starts + 1
        block = EncodedBlock(
            kind, text, codes, (begin, np.minimum(names, begin + LONGEST_LINE)), (names + 1, ends), known
        )
        copy, left = source.copy, len(text)
        for index, ahead, count in zip(range(len(known)), (left - after).tolist(), known, strict=True):
            source.ahead = ahead
            if count >= 0:
                if copy is not None:
                    copy(text[starts[index] : left - ahead])
                yield EncodedRecord(block, index)
                continue
            # the last line end before the next header belongs to that, but for the last record, as where they are split
            end = left - ahead - (ahead > 0)
            if copy is not None:
                copy(b">%b\n" % text[begin[index] : end].removesuffix(b"\n"))
            yield SequenceRecord(block.header(index), kind, text[names[index] + 1 : end])
        source.ahead = 0

    def _next_chunk(self) -> bytes:
        """More of the record's sequence lines, nothing at its end."""
        source = self._source
        while not source.at_end():
            data, pos = source.data, source.pos
            if self._line_start and data[pos] == _HEADER:
                break
            end = data.find(b"\n>", pos)
            chunk = data[pos : end + 1] if end >= 0 else data[pos:]
            source.pos = pos + len(chunk)
            line_start, self._line_start = self._line_start, chunk[-1] == _NEWLINE
            if self._in_comment or _COMMENT in chunk:
                chunk = self._without_comments(chunk, line_start)
            if chunk:
                return chunk
        source.end_record()
        return b""

    def _without_comments(self, chunk: bytes, line_start: bool) -> bytes:
        """The chunk less the lines that begin with `;`, one of which may have begun in the chunk before."""
        kept = []
        for line in chunk.splitlines(keepends=True):
            self._in_comment = self._in_comment or (line_start and line[0] == _COMMENT)
            if not self._in_comment:
                kept.append(line)
            line_start = line[-1] == _NEWLINE
            self._in_comment = self._in_comment and not line_start
        return b"".join(kept)


def _has_comments(text: bytes) -> bool:
    """Whether a line but the first begins with `;`; one byte is found many times as fast as two."""
    return b";" in text and b"\n;" in text
