"""How far texts agree with every stretch of a target: all the edit distances at once, by bit-parallel arithmetic."""

from collections.abc import Sequence

import numpy as np


def span_agreements(texts: Sequence[str], target: str, width: int) -> np.ndarray:
    """For each text and each span of the target, the longer one's length minus their edit distance.

    width: the longest span, at least 1. Returns (L, n + 1, width) int16 for L texts and a target of n characters. Entry
    [i, e, k - 1] belongs to text i and to target[e - k : e]; it is 0 if that would begin before the target.

    The table of edit distances d[row, k] (rows: the text's characters, k: the span's length) is filled for all spans with
    one k at once. A column is kept as two bit sets, which say in which rows d grows or falls by 1:

        plus:  d[row, k] = d[row - 1, k] + 1        minus: d[row, k] = d[row - 1, k] - 1

    Source: Myers, "A fast bit-vector algorithm for approximate string matching based on dynamic programming", J. ACM 46
    (1999), with its carry between blocks. We differ in two points. The empty text's row grows with k, so that spans are
    compared from end to end. A text stands in the upper bits of its blocks: rows below it act as the empty text's row.
    """
    n, lengths = len(target), np.array([len(text) for text in texts])
    letters, plus = _columns(texts, target, width)  # (blocks, L, n + width), (blocks, L, n)
    minus, top = np.zeros_like(plus), plus.itemsize * 8 - 1
    distance = np.repeat(lengths[:, None], n, axis=1).astype(np.int16)  # (L, n), by the span's start; of k = 0
    sizes = np.maximum(lengths[:, None], np.arange(width + 1)).astype(np.int16)  # (L, width + 1)
    agreement = np.zeros((len(texts), n + 1, width), dtype=np.int16)
    for k in range(1, width + 1):
        grows, falls = 1, None  # the step from k - 1 to k in the row below a block: first in the empty text's row
        for columns, p, m in zip(letters, plus, minus):
            grows, falls = _step(columns[:, k - 1 : k - 1 + n], p, m, grows, falls, top)
        distance += grows.astype(np.int16)
        distance -= falls.astype(np.int16)
        np.subtract(sizes[:, k, None], distance[:, : n + 1 - k], out=agreement[:, k:, k - 1])
    return agreement


def _step(
    match: np.ndarray, plus: np.ndarray, minus: np.ndarray, grows: np.ndarray | int, falls: np.ndarray | None, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turn a block's column k - 1 into column k, in place. Returns what its top row does: where it grows, where it falls.

    match: where the block's characters are the span's last one. grows, falls: the same of the block below; nothing falls
    below the first one. Operation by operation, because new arrays would cost as much as the arithmetic.
    """
    down = match | minus
    if falls is not None:
        match = match | falls
    # across = (((match & plus) + plus) ^ plus) | match
    across = match & plus
    across += plus
    across ^= plus
    across |= match
    # rises = minus | ~(across | plus)
    drops = plus & across
    across |= plus
    rises = np.invert(across, out=across)
    rises |= minus
    grown, fallen = rises >> top, drops >> top
    # from here on one row further up
    rises <<= 1
    rises |= grows
    drops <<= 1
    if falls is not None:
        drops |= falls
    # minus = rises & down, plus = drops | ~(down | rises)
    np.bitwise_and(rises, down, out=minus)
    down |= rises
    np.bitwise_or(drops, np.invert(down, out=down), out=plus)
    return grown, fallen


def _columns(texts: Sequence[str], target: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the texts: letters (blocks, L, n + width) and plus (blocks, L, n), at k = 0.

    A bit of `letters` says that the text's character there is the target's at that place; past the target none is.
    """
    longest = max(map(len, texts))
    num_bits = next((bits for bits in (8, 16, 32) if longest <= bits), 64)
    num_blocks, word = max(-(-longest // num_bits), 1), np.dtype(f"uint{num_bits}")
    kinds = {char: kind for kind, char in enumerate(dict.fromkeys(target))}
    places = np.zeros((num_blocks, len(texts), len(kinds)), dtype=word)  # where each kind of character stands in a text
    plus = np.zeros((num_blocks, len(texts), 1), dtype=word)
    for row, text in enumerate(texts):
        first = num_blocks * num_bits - len(text)
        bits: dict[int, int] = {}  # the places of each kind, as one long number
        for place, char in enumerate(text, first):
            if char in kinds:
                bits[kinds[char]] = bits.get(kinds[char], 0) | 1 << place
        columns = list(bits)
        for block in range(num_blocks):
            shift, ones = block * num_bits, (1 << num_bits) - 1
            plus[block, row] = (((1 << len(text)) - 1) << first) >> shift & ones
            places[block, row, columns] = [bits[kind] >> shift & ones for kind in columns]
    letters = np.zeros((num_blocks, len(texts), len(target) + width), dtype=word)
    letters[..., : len(target)] = places.take([kinds[char] for char in target], axis=2)
    return letters, plus.repeat(len(target), axis=2)
