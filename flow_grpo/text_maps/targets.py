"""Which text a prompt asks for, and how similar a recognised text is to it."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from .quotes import quoted_targets as quoted_targets  # callers import it from this file
from .quotes import read_quotes

# Limits for the text that an image must show, in characters: with them, matching takes only milliseconds.
MAX_PROMPT_LENGTH = 20_000
MAX_TARGETS_LENGTH = 1_000

Normalisation = Literal["flow_grpo", "unicode"]
_TO_ASCII = str.maketrans(dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—−", "-"))


def prompt_targets(
    prompt: str, metadata: Mapping[str, Any] | None = None, normalisation: Normalisation = "flow_grpo"
) -> list[str]:
    """The texts an image of this prompt must show, as written: metadata["targets"] if given, else the quoted texts.

    Raises ValueError if there is no target, if quotes cannot be paired, if a target is empty once normalised, if the prompt
    is longer than MAX_PROMPT_LENGTH characters, or if its normalised targets together are longer than MAX_TARGETS_LENGTH.
    """
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise ValueError(
            f"a prompt of {len(prompt)} characters is too long for an OCR reward: {shortened(prompt)}; "
            f"give at most {MAX_PROMPT_LENGTH}"
        )
    if metadata and "targets" in metadata:
        targets = metadata["targets"]
        listed = isinstance(targets, (list, tuple)) and targets
        if not listed or not all(isinstance(target, str) and target.strip() for target in targets):
            raise ValueError(
                f"metadata['targets'] must be a list of texts, got {targets!r} for the prompt {shortened(prompt)}"
            )
    else:
        targets, fault = read_quotes(prompt)
        if fault:
            raise ValueError(
                f"the quotes of the prompt {shortened(prompt)} cannot be paired: {fault}; put each text that the image must "
                "show in double quotes of its own, or give it as metadata {'targets': [...]}"
            )
    if not targets:
        raise ValueError(
            f"the prompt has no quoted text for an OCR reward to look for: {shortened(prompt)}; "
            "put the text in double quotes, or give it as metadata {'targets': [...]}"
        )
    lengths = [len(normalise(target, normalisation)) for target in targets]
    if 0 in lengths:
        raise ValueError(
            f"the target {targets[lengths.index(0)]!r} of the prompt {shortened(prompt)} is empty once normalised "
            f"({normalisation!r}); give one that shows at least a character"
        )
    if sum(lengths) > MAX_TARGETS_LENGTH:
        raise ValueError(
            f"the prompt {shortened(prompt)} asks for {sum(lengths)} characters of text; ask for at most "
            f"{MAX_TARGETS_LENGTH}, which is more than an image shows"
        )
    return list(targets)


def shortened(text: str) -> str:
    """A text in the short form that messages quote."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def joined(lines: Iterable[str]) -> str:
    """An image's lines as one text for people to look at, such as "SPRING / SALE", cut after 200 characters."""
    text = " / ".join(lines)
    return text if len(text) <= 200 else f"{text[:200]}..."


def batch_targets(
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any] | None] | None,
    normalisation: Normalisation = "flow_grpo",
) -> list[list[str]]:
    """`prompt_targets` of each prompt of a batch; metadata: one mapping per prompt, or None or empty for none."""
    pairs = zip(prompts, metadata or [None] * len(prompts), strict=True)
    return [prompt_targets(*pair, normalisation) for pair in pairs]


# Characters that leave no mark on an image, besides white space and Unicode's formatting and control characters (Cf, Cc).
_INVISIBLE = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),  # combining grapheme joiner
        (0x115F, 0x1160),  # Hangul fillers, as are 3164 and FFA0
        (0x17B4, 0x17B5),  # Khmer inherent vowels
        (0x180B, 0x180F),  # Mongolian variation selectors
        (0x2800, 0x2800),  # Braille blank
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),  # variation selectors
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)


def normalise(text: str, normalisation: Normalisation = "flow_grpo") -> str:
    """Text in the form that is compared. An image loses nothing for differences that this removes.

    "flow_grpo": lower case, without spaces, as in Flow-GRPO's OcrScorer. It also removes what no image can show: other
        white space, invisible characters, and whether an accent is a character of its own (NFC).
    "unicode": the same, then NFKC, case folding, and ASCII quotes and dashes for typographic ones. For prompts with curly
        apostrophes, full-width forms, or scripts other than Latin.
    """
    if normalisation == "flow_grpo":
        return _visible(_visible(text).lower())
    if normalisation != "unicode":
        raise ValueError(f'unknown normalisation {normalisation!r}; choose "flow_grpo" or "unicode"')
    # quotes first: NFKC turns the double prime into two single ones
    folded = unicodedata.normalize("NFKC", text.translate(_TO_ASCII)).casefold()
    return _visible(unicodedata.normalize("NFKC", _visible(folded)))


def _visible(text: str) -> str:
    """The text composed (NFC), without invisible characters."""
    if text.isascii() and text.isprintable():
        return text.replace(" ", "")
    return unicodedata.normalize("NFC", "".join(filter(_is_visible, text)))


@lru_cache(2**16)
def _is_visible(char: str) -> bool:
    return not char.isspace() and char not in _INVISIBLE and unicodedata.category(char) not in ("Cf", "Cc")


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each costing 1.

    Raises ImportError where python-Levenshtein is not installed.
    """
    return _levenshtein().distance(a, b)


def edit_operations(a: str, b: str) -> list[tuple[str, int, int]]:
    """The fewest edits that turn a into b: ("replace" | "insert" | "delete", index in a, index in b)."""
    return _levenshtein().editops(a, b)


def similarity(a: str, b: str) -> float:
    """1 - edit_distance / length of the longer text, in [0, 1]; two empty texts have 1.

    It compares the texts as given: `normalise` both first if case and spaces must not count.
    It is not Levenshtein.ratio, which counts a substitution as a deletion and an insertion.
    """
    longest = max(len(a), len(b))
    return 1.0 - edit_distance(a, b) / longest if longest else 1.0


def _levenshtein() -> Any:
    try:
        import Levenshtein
    except ImportError as error:
        raise ImportError('text rewards need python-Levenshtein: pip install "flow-grpo-maps[ocr]"') from error
    return Levenshtein
