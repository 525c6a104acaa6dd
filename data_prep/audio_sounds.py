"""The samples of many sound files at one rate, from memory or from disk; damaged files are named once and left out.

Safe for the workers of a data loader: what one of them finds damaged all leave out.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mamba_seq.data_prep.audio_files import AudioFile, Skipped
from mamba_seq.data_prep.audio_io import read_audio
from mamba_seq.data_prep.audio_trim import trimmed
from mamba_seq.data_prep.codecs import Samples
from mamba_seq.data_prep.errors import DataError

log = logging.getLogger(__name__)


class Sounds:
    """The samples of files at one rate: from memory, or from disk by seeking.

    Args:
        files: The files.
        sample_rate: Samples a second of what is read.
        in_memory: Read all files now. Those that are damaged are then known, and out of the list.
        threads: That many files are decoded at a time.
        trim: Files of at most so many samples are read without the room before and after their sound.

    Attributes:
        files: Those that can be read, as far as is known.
        skipped: Those that cannot, of the ones that were read now.
        lengths: Number of samples of each, at `sample_rate`, before trimming.
    """

    def __init__(
        self, files: Sequence[AudioFile], sample_rate: int, in_memory: bool, threads: int = 8, trim: int = 0
    ) -> None:
        self.sample_rate = sample_rate
        self._trim = trim
        self.files = list(files)
        self.skipped: list[Skipped] = []
        self._samples: list[Samples] | None = None
        if in_memory:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(self._decode, self.files))
            self.skipped = [each for each in found if isinstance(each, Skipped)]
            self.files = [f for f, each in zip(self.files, found, strict=True) if not isinstance(each, Skipped)]
            self._samples = [each for each in found if not isinstance(each, Skipped)]
        self.lengths = np.array([file.info.length(sample_rate) for file in self.files], dtype=np.int64)
        # shared with workers: what one finds out all know, and the main process can count
        self._damaged = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()

    def read(self, index: int, start: int, length: int) -> Samples | None:
        """`length` samples of a file from `start` on, cut off at its end; None if it cannot be read.

        Why is logged the first time.
        """
        if self._damaged[index]:
            return None
        if self._samples is not None:
            return self._samples[index][start : start + length]
        try:
            file = self.files[index]
            if self._trims(file):
                return self._read_whole(file)[start : start + length]
            return read_audio(file.path, self.sample_rate, start, length)
        except DataError as error:
            if not self._damaged[index]:
                self._damaged[index] = True
                log.warning("left out from now on: %s", error)
            return None

    @property
    def damaged(self) -> list[AudioFile]:
        """Files that some process tried to read in vain."""
        return [file for file, bad in zip(self.files, self._damaged.tolist(), strict=True) if bad]

    def _trims(self, file: AudioFile) -> bool:
        return file.info.length(self.sample_rate) <= self._trim

    def _read_whole(self, file: AudioFile) -> Samples:
        samples = read_audio(file.path, self.sample_rate)
        return trimmed(samples, self.sample_rate) if self._trims(file) else samples

    def _decode(self, file: AudioFile) -> Samples | Skipped:
        try:
            return self._read_whole(file)
        except DataError as error:
            return Skipped(file.path, str(error))
