"""Which text a prompt asks for, and how near a recognised text comes to it."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

# Each pair of double quotes is taken as it stands. \" does not close a straight one while another quote follows that could,
# and where a whole prompt was escaped, \" opens and \" closes.
_DOUBLE_QUOTED = re.compile(
    r'\\"((?:[^"\\]|\\(?!"))*)\\"|"((?:[^"\\]|\\"?)*)"|“([^“”]*)”|„([^„“”]*)[“”]|«([^«»]*)»|「([^「」]*)」|『([^『』]*)』'
)
# A single quote opens only before and closes only after a word ("dogs' bowl", "don't"), and not where it stands for left
# out letters ("rock 'n' roll", "the '90s").
_ELISION = r"(?!n['’]|(?:\d\ds|tis|twas|til|em|cause)\b(?!['’]))"
_SINGLE_QUOTED = re.compile(rf"(?<!\w)'{_ELISION}(?=\S)(.+?)(?<=\S)'(?!\w)|(?<!\w)‘(?=\S)(.+?)(?<=\S)’(?!\w)")

Normalisation = Literal["flow_grpo", "unicode"]
_TO_ASCII = str.maketrans(dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—−", "-"))


def quoted_targets(prompt: str) -> list[str]:
    r"""The quoted spans of a prompt, in order, stripped, blank ones left out, and \" inside them as a plain ".

    Quotes are "...", “...”, „...“, „...”, «...», 「...」 and 『...』; only a prompt without any of those is searched for '...'
    and ‘...’, so that an apostrophe never opens a target.
    """
    for quotes in (_DOUBLE_QUOTED, _SINGLE_QUOTED):
        spans = [next(group for group in match.groups() if group is not None) for match in quotes.finditer(prompt)]
        targets = [span.replace('\\"', '"').strip() for span in spans if span.strip()]
        if targets:
            return targets
    return []


def prompt_targets(
    prompt: str, metadata: Mapping[str, Any] | None = None, normalisation: Normalisation = "flow_grpo"
) -> list[str]:
    """The texts an image of this prompt must show, as written: metadata["targets"] where given, else what it quotes.

    Raises ValueError where there is none, or where one is blank or empty once normalised.
    """
    if metadata and "targets" in metadata:
        targets = metadata["targets"]
        if isinstance(targets, str) or not targets or not all(isinstance(t, str) and t.strip() for t in targets):
            raise ValueError(f"metadata['targets'] must be a list of texts, got {targets!r} for the prompt {prompt!r}")
    else:
        targets = quoted_targets(prompt)
    if not targets:
        raise ValueError(
            f"the prompt has no quoted text for an OCR reward to look for: {prompt!r}; "
            "put the text in double quotes, or give it as metadata {'targets': [...]}"
        )
    for target in targets:
        if not normalise(target, normalisation):
            raise ValueError(
                f"the target {target!r} of the prompt {prompt!r} is empty once normalised ({normalisation!r}); "
                "give one that shows at least a character"
            )
    return list(targets)


def batch_targets(
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any] | None] | None,
    normalisation: Normalisation = "flow_grpo",
) -> list[list[str]]:
    """`prompt_targets` of each prompt of a batch; metadata: one mapping per prompt, or None or empty for none."""
    pairs = zip(prompts, metadata or [None] * len(prompts), strict=True)
    return [prompt_targets(*pair, normalisation) for pair in pairs]


def normalise(text: str, normalisation: Normalisation = "flow_grpo") -> str:
    """Text as it is compared: what this leaves out or makes alike costs an image nothing.

    "flow_grpo": without spaces, in lower case, as Flow-GRPO's OcrScorer does it.
    "unicode": NFKC, case folded, typographic quotes and dashes as ASCII's, without any white space or invisible
        formatting character. For prompts with curly apostrophes, full-width forms, or scripts other than Latin.
    """
    if normalisation == "flow_grpo":
        return text.replace(" ", "").lower()
    if normalisation != "unicode":
        raise ValueError(f'unknown normalisation {normalisation!r}; choose "flow_grpo" or "unicode"')
    # quotes first: NFKC turns the double prime into two single ones
    folded = unicodedata.normalize("NFKC", text.translate(_TO_ASCII)).casefold()
    seen = (char for char in folded if not char.isspace() and unicodedata.category(char) not in ("Cf", "Cc"))
    return unicodedata.normalize("NFKC", "".join(seen))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each costing 1.

    Raises ImportError where python-Levenshtein is not installed.
    """
    return _levenshtein().distance(a, b)


def edit_operations(a: str, b: str) -> list[tuple[str, int, int]]:
    """The least edits that make b of a: ("replace" | "insert" | "delete", index in a, index in b)."""
    return _levenshtein().editops(a, b)


def similarity(a: str, b: str) -> float:
    """1 - edit_distance / length of the longer text, in [0, 1]; two empty texts are alike.

    Compares as given: `normalise` both first where case and spaces must not count.
    Not Levenshtein.ratio, which counts a substitution as a deletion and an insertion.
    """
    longest = max(len(a), len(b))
    return 1.0 - edit_distance(a, b) / longest if longest else 1.0


def _levenshtein() -> Any:
    try:
        import Levenshtein
    except ImportError as error:
        raise ImportError('text rewards need python-Levenshtein: pip install "flow-grpo-maps[ocr]"') from error
    return Levenshtein
