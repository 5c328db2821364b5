"""Where each character of a line lies, from what RapidOCR's recogniser says of its columns."""

import numpy as np


def place_characters(crops, boxes, recognised, single):
    """Replaces RapidOCR's word boxes: gives each character of each line, with its confidence and its (start, end)."""
    recognised.word_results = [
        list(zip(text, words.confs, _extents(text, sum(words.word_cols, []), words.line_txt_len), strict=True))
        for text, words in zip(recognised.txts, recognised.word_results, strict=True)
    ]
    return recognised


def _extents(text: str, columns: list[int], num_columns: float) -> list[tuple[float, float]]:
    """Where each character of a line begins and ends, as shares of the line.

    columns: the recogniser's (CTC) column of each character that is not a space; the line has num_columns of them. A
    character reaches half-way to its neighbours. Spaces have no column; they are spread evenly between their neighbours.
    """
    order = np.arange(len(text))
    seen = [not character.isspace() for character in text]
    centres = np.interp(order, order[seen], (np.array(columns) + 0.5) / num_columns)
    edges = (centres[1:] + centres[:-1]) / 2
    first, last = (2 * centres[0] - edges[0], 2 * centres[-1] - edges[-1]) if len(edges) else (0, 1)
    edges = np.clip([first, *edges, last], 0, 1).tolist()
    return list(zip(edges, edges[1:]))
