"""Names that come more than once among millions, in eight bytes a name."""

import hashlib

import numpy as np
from numpy.typing import NDArray

# names are compared with all earlier ones in lots of this size, the only names held as text
LOT = 1 << 16


class RepeatedNames:
    """Counts names that an earlier one equals.

    Only a 64-bit hash of a name is kept, in sorted runs of which no two have nearly the same size, so that N names cost
    O(N log N). Two different names share a hash with probability N^2 / 2^65: 10^-6 among five million.
    """

    def __init__(self) -> None:
        self._count = 0
        self._example = ""
        self._lot: list[str] = []
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, name: str) -> None:
        """Take in a name."""
        self._lot.append(name)
        if len(self._lot) >= LOT:
            self._compare_lot()

    def result(self) -> tuple[int, str]:
        """Return how many names repeated an earlier one, and the first that did (empty when none)."""
        self._compare_lot()
        return self._count, self._example

    def _compare_lot(self) -> None:
        lot, self._lot = self._lot, []
        if not lot:
            return
        hashes = np.array([_hash(name) for name in lot], dtype=np.uint64)
        distinct, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(distinct), dtype=bool)
        for run in self._runs:
            place = np.searchsorted(run, distinct)
            known |= run[np.minimum(place, len(run) - 1)] == distinct
        new = first[~known]
        if len(new) < len(lot):
            repeated = np.ones(len(lot), dtype=bool)
            repeated[new] = False
            self._count += int(repeated.sum())
            self._example = self._example or lot[int(repeated.argmax())]
        if len(new):
            self._runs.append(distinct[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            # the stable sort finds the two sorted runs and only merges them
            self._runs[-1] = np.sort(np.concatenate((self._runs[-1], last)), kind="stable")


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
