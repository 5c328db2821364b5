"""How much of the asked text was read, as each benchmark defines it. The functions compare texts and know no image.

    cvtg-2k         Du et al., arXiv:2503.23461     words, without case and punctuation
    longtext-bench  Geng et al., arXiv:2507.22058   words, without case and punctuation; in Chinese characters
    oneig           Chang et al., arXiv:2506.07977  words, without punctuation; in Chinese characters

All compare multisets: if a word is asked for twice, it must be read twice.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flow_grpo.text_maps.targets import edit_distance, similarity

LANGUAGES = ("en", "zh")
ONEIG_MOST_EDITS = {"en": 100, "zh": 50}  # an edit distance beyond it counts as this one

# What LongText-Bench and OneIG compare: Latin and French letters, digits, the common Chinese characters, and white space.
_LEFT_OUT = re.compile(r"[^a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ\u4e00-\u9fa5\s]")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Reading:
    """One image. texts: what its prompt asks for. read: what an engine read in it, its lines in order."""

    texts: list[str]
    read: str


def cvtg(readings: Sequence[Reading], language: str) -> dict[str, float]:
    """CVTG-2K's word accuracy and NED, both over the words of all images.

    word_accuracy: share of the asked words that were read. ned: mean over the asked words of the similarity of the nearest
    word that was read, 1 - distance / length of the longer. exact, which is ours: share of images with every word.
    """
    _only("cvtg-2k", language, "en")
    matched, similarities, whole = 0, [], 0
    for reading in readings:
        asked = _PUNCTUATION.sub("", " ".join(reading.texts)).lower().split()
        seen = _PUNCTUATION.sub("", reading.read).lower().split()
        common = _num_common(asked, seen)
        matched += common
        whole += common == len(asked)
        similarities += [max((similarity(word, other) for other in seen), default=0.0) for word in asked]
    num_words = max(1, len(similarities))
    return {
        "word_accuracy": matched / num_words,
        "ned": sum(similarities) / num_words,
        "exact": whole / len(readings),
    }


def longtext(readings: Sequence[Reading], language: str) -> dict[str, float]:
    """LongText-Bench's text score: matched words over asked words, of all images together; in Chinese characters."""
    matched = total = whole = 0
    for reading in readings:
        asked = _units(" ".join(reading.texts).lower(), language)
        common = _num_common(asked, _units(reading.read.lower(), language))
        matched, total, whole = matched + common, total + len(asked), whole + (common == len(asked))
    return {"text_score": matched / max(1, total), "exact": whole / len(readings)}


def oneig(readings: Sequence[Reading], language: str) -> dict[str, float]:
    """OneIG's text score, 1 - min(ED, most) / most * (1 - CR) * (1 - WAC), and its three parts.

    edit_distance (ED): mean over images. completion_rate (CR): share of images without any edit. word_accuracy (WAC):
    matched over asked words of all images. most: 100, in Chinese 50.
    """
    edits, matched, total = [], 0, 0
    for reading in readings:
        asked, seen = _units(" ".join(reading.texts), language), _units(reading.read, language)
        joiner = " " if language == "en" else ""
        edits.append(edit_distance(joiner.join(seen), joiner.join(asked)))
        matched, total = matched + _num_common(asked, seen), total + len(asked)
    distance, completed = sum(edits) / len(edits), edits.count(0) / len(edits)
    accuracy, most = matched / max(1, total), ONEIG_MOST_EDITS[language]
    return {
        "edit_distance": distance,
        "completion_rate": completed,
        "word_accuracy": accuracy,
        "text_score": 1 - min(distance, most) / most * (1 - completed) * (1 - accuracy),
    }


METRICS = {"cvtg-2k": cvtg, "longtext-bench": longtext, "oneig": oneig}


def _units(text: str, language: str) -> list[str]:
    """The words of a text, of a Chinese one its characters; without what the benchmarks leave out."""
    cleaned = _LEFT_OUT.sub("", text)
    return cleaned.split() if language == "en" else list("".join(cleaned.split()))


def _num_common(asked: list[str], seen: list[str]) -> int:
    return (Counter(asked) & Counter(seen)).total()


def _only(benchmark: str, language: str, known: str) -> None:
    if language != known:
        raise ValueError(f"{benchmark} is in {known}, got --language {language}")
