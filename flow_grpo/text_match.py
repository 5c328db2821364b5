"""Which text a prompt asks for, and how near a recognised text comes to it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Double quotes, straight or curly, are taken as they stand.
_DOUBLE_QUOTED = re.compile(r'"([^"]*)"|“([^“”]*)”')
# A single quote opens only before and closes only after a word ("dogs' bowl", "don't"), and not where it stands for left
# out letters ("rock 'n' roll", "the '90s").
_ELISION = r"(?!n['’]|(?:\d\ds|tis|twas|til|em|cause)\b(?!['’]))"
_SINGLE_QUOTED = re.compile(rf"(?<!\w)'{_ELISION}(?=\S)(.+?)(?<=\S)'(?!\w)|(?<!\w)‘(?=\S)(.+?)(?<=\S)’(?!\w)")


def quoted_targets(prompt: str) -> list[str]:
    """The quoted spans of a prompt, in order, stripped, blank ones left out.

    Quotes are "...", “...”; only a prompt without any of those is searched for '...' and ‘...’, so that an apostrophe
    never opens a target.
    """
    for quotes in (_DOUBLE_QUOTED, _SINGLE_QUOTED):
        spans = [next(group for group in match.groups() if group is not None) for match in quotes.finditer(prompt)]
        targets = [span.strip() for span in spans if span.strip()]
        if targets:
            return targets
    return []


def prompt_targets(prompt: str, metadata: Mapping[str, Any] | None = None) -> list[str]:
    """The texts an image of this prompt must show: metadata["targets"] where given, else what the prompt quotes.

    Raises ValueError where there is none, or where one is blank.
    """
    if metadata and "targets" in metadata:
        targets = metadata["targets"]
        if isinstance(targets, str) or not targets or not all(isinstance(t, str) and t.strip() for t in targets):
            raise ValueError(f"metadata['targets'] must be a list of texts, got {targets!r} for the prompt {prompt!r}")
        return list(targets)
    targets = quoted_targets(prompt)
    if not targets:
        raise ValueError(
            f"the prompt has no quoted text for an OCR reward to look for: {prompt!r}; "
            "put the text in double quotes, or give it as metadata {'targets': [...]}"
        )
    return targets


def batch_targets(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any] | None] | None) -> list[list[str]]:
    """`prompt_targets` of each prompt of a batch; metadata: one mapping per prompt, or None or empty for none."""
    return [prompt_targets(*pair) for pair in zip(prompts, metadata or [None] * len(prompts), strict=True)]


def normalise(text: str) -> str:
    """Text as Flow-GRPO compares it: without spaces, in lower case (its OcrScorer)."""
    return text.replace(" ", "").lower()


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each costing 1.

    Raises ImportError where python-Levenshtein is not installed.
    """
    try:
        from Levenshtein import distance
    except ImportError as error:
        raise ImportError('text rewards need python-Levenshtein: pip install "flow-grpo-maps[ocr]"') from error
    return distance(a, b)


def similarity(a: str, b: str) -> float:
    """1 - edit_distance / length of the longer text, in [0, 1]; two empty texts are alike.

    Compares as given: `normalise` both first where case and spaces must not count.
    Not Levenshtein.ratio, which counts a substitution as a deletion and an insertion.
    """
    longest = max(len(a), len(b))
    return 1.0 - edit_distance(a, b) / longest if longest else 1.0
