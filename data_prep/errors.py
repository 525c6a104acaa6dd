"""What can be wrong with a user's data. Every message says what came, what was expected and what to do."""


class DataError(ValueError):
    """Data that cannot be used; the command line prints the message and exits with 1."""


class UnreadableFile(DataError):
    """A path that is missing, is a folder, or that may not be read."""


class NoRecords(DataError):
    """A readable file in which no sequence record begins."""


class EmptyFile(NoRecords):
    """A file, or a compressed file's content, of zero bytes or nothing but white space."""


class TruncatedFile(DataError):
    """A file that stops in the middle, or whose compressed data are damaged."""


class NotText(DataError):
    """A file that is binary, or text in an encoding of two or four bytes a character."""


class BadRecord(DataError):
    """A record that breaks its format, such as FASTQ with fewer qualities than bases."""


class NotIndexable(DataError):
    """A FASTA file that random access cannot use: plain gzip, lines of unequal length, names that occur twice."""


class BadAudio(DataError):
    """Sound that cannot be used: a file that is none or is damaged, one without samples, or samples that are NaN."""


class TooFewData(DataError):
    """Data that are in order but too few or too short for what was asked."""
