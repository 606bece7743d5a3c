"""Owns Philox4x64-10, a generator of random numbers that is a function of a key and a count, for many keys at once.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The numbers are those of `numpy.random.Philox`, which takes one key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: The two multipliers, and what the halves of the key grow by from round to round.
_FACTORS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_ROUNDS = 10

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_FACTORS_LOW, _FACTORS_HIGH = _FACTORS & _LOW, _FACTORS >> _HALF

#: For fewer keys than this, NumPy's generator, one after the other, is faster.
_FEW = 48

#: Numbers of a block.
BLOCK = 4


class Philox:
    """Random numbers of N keys, in blocks of four.

    Args:
        names_N: 16 bytes each: the key, the low half first, little-endian.
        num_blocks: that may be drawn of each.
    """

    def __init__(self, names_N: list[bytes], num_blocks: int) -> None:
        self._keys_2N = np.frombuffer(b"".join(names_N), "<u8").astype(np.uint64).reshape(-1, 2).T
        self._all: NDArray[np.float64] | None = None
        if len(names_N) < _FEW:
            count = num_blocks * BLOCK
            raw = [np.random.Philox(key=int.from_bytes(name, "little")).random_raw(count) for name in names_N]
            self._all = _as_uniform(np.array(raw, np.uint64).reshape(-1, num_blocks, BLOCK))

    def block(self, number: int, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Numbers 4 x `number` and the three behind it, in [0, 1), of the keys at some places: float64 (place, 4)."""
        if self._all is not None:
            found: NDArray[np.float64] = self._all[places, number]
            return found
        return _as_uniform(_block(self._keys_2N[:, places], number + 1))  # NumPy counts before it draws


def _as_uniform(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _block(keys_2N: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """uint64 (key, 4): the output for the counter (count, 0, 0, 0)."""
    even = np.zeros_like(keys_2N)  # words 0 and 2 of the counter; words 1 and 3 are `odd`
    even[0] = count
    odd = np.zeros_like(even)
    for _ in range(_ROUNDS):
        high, low = _multiply(even)
        even, odd = high[::-1] ^ odd ^ keys_2N, low[::-1]
        keys_2N = keys_2N + _KEY_STEPS
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=1)


def _multiply(words_2N: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The high and low 64 bits of the product with the factors."""
    low, high = words_2N & _LOW, words_2N >> _HALF
    middle = _FACTORS_HIGH * low + ((_FACTORS_LOW * low) >> _HALF)
    other = _FACTORS_LOW * high + (middle & _LOW)
    return _FACTORS_HIGH * high + (middle >> _HALF) + (other >> _HALF), _FACTORS * words_2N
