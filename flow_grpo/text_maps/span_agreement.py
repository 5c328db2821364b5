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
    agreement = np.zeros((len(texts), n + 1, width), dtype=np.int16)
    for k in range(1, width + 1):
        grows, falls = 1, 0  # the step from k - 1 to k in the row below a block: first in the empty text's row
        for block, columns in enumerate(letters):
            match, p, m = columns[:, k - 1 : k - 1 + n], plus[block], minus[block]
            down = match | m
            match = match | falls
            across = (((match & p) + p) ^ p) | match
            rises, drops = m | ~(across | p), p & across
            up_rises, up_drops = rises << 1 | grows, drops << 1 | falls
            plus[block], minus[block] = up_drops | ~(down | up_rises), up_rises & down
            grows, falls = rises >> top, drops >> top
        distance += grows.astype(np.int16)
        distance -= falls.astype(np.int16)
        agreement[:, k:, k - 1] = np.maximum(lengths, k)[:, None] - distance[:, : n + 1 - k]
    return agreement


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
        for place, char in enumerate(text, num_blocks * num_bits - len(text)):
            block, bit = place // num_bits, word.type(1 << place % num_bits)
            plus[block, row] |= bit
            if char in kinds:
                places[block, row, kinds[char]] |= bit
    letters = np.zeros((num_blocks, len(texts), len(target) + width), dtype=word)
    letters[..., : len(target)] = places[..., [kinds[char] for char in target]]
    return letters, plus.repeat(len(target), axis=2)
