"""Owns finding the one bit that was flipped in bytes whose checksum is known: a CRC's syndrome names its place.

A CRC is linear: the checksums of two texts that differ in one bit differ by a number that depends on the distance of that bit
from the end alone. So the place is found by looking for that number, without trying bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Generators, bits reversed: of zlib's CRC-32, and of CRC-32C (Castagnoli), which Zarr's codec `crc32c` puts behind a chunk.
CRC32, CRC32C = 0xEDB88320, 0x82F63B78

#: Bytes that are looked at together.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class FlippedBit:
    """A byte's number, and the bit in it (0 is the lowest)."""

    byte: int
    bit: int


def find_flipped_bit(length: int, syndrome: int, generator: int) -> FlippedBit | None:
    """Which single bit of `length` bytes was flipped; None where no single one was.

    Args:
        syndrome: checksum that was recorded XOR checksum of the bytes as they are.
        generator: `CRC32` or `CRC32C`.
    """
    wanted = np.uint32(syndrome)
    for first, syndromes in _blocks(length, generator):
        hit = np.argwhere(syndromes == wanted)
        if len(hit):
            from_end, bit = (int(n) for n in hit[0])
            return FlippedBit(length - 1 - (first + from_end), bit)
    return None


def checksum(data: bytes, generator: int) -> int:
    """The CRC of bytes, as zlib's `crc32` has it for `CRC32`. Slow: for what is wrong already."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8)[::-1, None], axis=1, bitorder="little").astype(bool)
    register = np.array([0xFFFFFFFF], np.uint32)
    found = int(_advanced(register, len(data), generator)[0])
    for first, syndromes in _blocks(len(data), generator):
        here = bits[first : first + len(syndromes)]
        found ^= int(np.bitwise_xor.reduce(np.where(here, syndromes, np.uint32(0)), axis=None))
    return found ^ 0xFFFFFFFF


def _blocks(length: int, generator: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(first byte from the end, syndromes of its block: uint32 (byte, bit)), from the end of the bytes on."""
    table = _table(generator)
    # Of the last byte, whose eight bits the shift register has taken in when it is done.
    block = np.array([[table[1 << bit] for bit in range(8)]], np.uint32)
    while len(block) < min(length, _BLOCK):
        block = np.concatenate([block, _advanced(block, len(block), generator)])
    step = len(block)
    for first in range(0, length, step):
        yield first, block[: length - first]
        if first + step < length:
            block = _advanced(block, step, generator)


def _advanced(states: NDArray[np.uint32], num_bytes: int, generator: int) -> NDArray[np.uint32]:
    """The register's states after so many zero bytes: a linear map, applied byte of the state by byte."""
    images = np.array([1 << bit for bit in range(32)], np.uint32)
    power, left = _byte_step(images, generator), num_bytes
    result = images
    while left:
        if left & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        left >>= 1
    return _apply(result, states)


def _byte_step(states: NDArray[np.uint32], generator: int) -> NDArray[np.uint32]:
    table = _table(generator)
    after: NDArray[np.uint32] = (states >> np.uint32(8)) ^ table[states & np.uint32(0xFF)]
    return after


def _apply(matrix: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A linear map, given by the images of the 32 bits, of each state; by four tables of 256."""
    found = np.zeros_like(states)
    for part in range(4):
        table = np.zeros(256, np.uint32)
        for bit in range(8):
            table[1 << bit : 2 << bit] = table[: 1 << bit] ^ matrix[8 * part + bit]
        found ^= table[(states >> np.uint32(8 * part)) & np.uint32(0xFF)]
    return found


def _table(generator: int) -> NDArray[np.uint32]:
    """The register after one byte, by the byte."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = (values >> np.uint32(1)) ^ (np.uint32(generator) * (values & np.uint32(1)))
    return values
