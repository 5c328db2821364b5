"""Find the quoted texts of a prompt, and quotes that cannot be paired. Time and memory grow linearly with the prompt."""

import re
from typing import NamedTuple

# Each kind of double quote has its own closing quote. \" does not close a straight quote if a later quote can close it. In a
# prompt that was escaped as a whole, \" opens and \" closes.
_DOUBLE_QUOTED = re.compile(
    r'\\"((?:[^"\\]|\\(?!"))*)\\"|"((?:[^"\\]|\\"?)*)"|“([^“”]*)”|„([^„“”]*)[“”]|«([^«»]*)»|「([^「」]*)」|『([^『』]*)』|'
    r"＂([^＂]*)＂|〝([^〝〞〟]*)[〞〟]|‹([^‹›]*)›|"
    # what closes another kind opens only right before its text, and not within a word
    r"(?<!\w)(?:”(?=\S)([^“”]*)(?<=\S)”|»(?=\S)([^«»]*)(?<=\S)[«»]|›(?=\S)([^‹›]*)(?<=\S)‹|‚(?=\S)([^‚‘’]*)(?<=\S)[‘’])"
)
_DOUBLE_QUOTE = re.compile(r'\\?"|[“”„«»「」『』＂〝〞〟‹›‚]')
_OFTEN_ALONE = "‹›‚"  # also used as arrows and commas
# What follows an inch mark, which stands after a digit while no quote is open: 24" wide, 12"x18", 24”.
_INCHES = re.compile(r"$|[\s,.;:!?)\]/×–—-]|x\d")
# A quote between white space and a letter can only open; a quote between a letter and white space can only close.
_OPENS = re.compile(r'(?:^|(?<=[\s(\[]))"(?=\w)')
_CLOSES = re.compile(r'(?<=\w)"(?=\s)')

# A single quote opens only before a word and closes only after a word, so "don't" has none. It does not open where it
# stands for omitted letters ("rock 'n' roll", "the '90s").
_LEFT_OUT = r"(?:\d\ds|tis|twas|til|em|cause)\b"
_ELISION = rf"(?!n['’]|{_LEFT_OUT}(?!['’]))"
_SINGLE_OPENS = re.compile(rf"(?<!\w)(?:'{_ELISION}|‘)(?=\S)")
_SINGLE_CLOSES = re.compile(r"(?<=\S)(?<!['’]n)['’](?!\w)")
_ELIDED = re.compile(rf"'(?:n['’]|{_LEFT_OUT})")
_CLOSED_BY = {"'": "'", "‘": "’"}
# A word's own apostrophe at its end: dogs', 6', workin'.
_POSSESSIVE = re.compile(r"(?:[sSzZ\d]|in)$")


class Quoted(NamedTuple):
    """targets: the quoted spans of a prompt, in order. fault: what is wrong or unclear about its quotes, or None."""

    targets: list[str]
    fault: str | None


def quoted_targets(prompt: str) -> list[str]:
    r"""The quoted spans of a prompt, in order and stripped. Blank spans are left out, and \" inside a span becomes ".

    Quotes are "...", ＂...＂, “...”, ”...”, „...“, „...”, ‚...‘, «...», »...«, »...», ‹...›, ›...‹, 「...」, 『...』 and 〝...〞. Only a
    prompt without any of these is searched for '...' and ‘...’, so that an apostrophe beside them never opens a target. A straight
    quote after a digit is an inch mark if no quote is open.
    """
    return read_quotes(prompt).targets


def read_quotes(prompt: str) -> Quoted:
    """`quoted_targets` of a prompt, and whether its quotes can be paired in one way only.

    The fault is None for a prompt without any quoted span, even if it has lone quotes.
    """
    spans, fault = _double_quoted(prompt)
    targets = _cleaned(spans)
    if not targets:
        singles, single_fault = _single_quoted(prompt)
        targets, fault = _cleaned(singles), fault or single_fault
    return Quoted(targets, fault if targets else None)


def _cleaned(spans: list[str]) -> list[str]:
    return [span.replace('\\"', '"').strip() for span in spans if span.strip()]


def _double_quoted(prompt: str) -> tuple[list[str], str | None]:
    spans, fault, place = [], None, 0
    while quote := _DOUBLE_QUOTE.search(prompt, place):
        start, place = quote.span()
        if quote[0] in '"”' and prompt[start - 1 : start].isnumeric() and _INCHES.match(prompt, place):
            continue
        pair = _DOUBLE_QUOTED.match(prompt, start)
        if pair is None and quote[0] in _OFTEN_ALONE:
            continue
        if pair is None:
            fault = fault or f"{_shown(prompt, start)} has no partner"
            continue
        span = next(group for group in pair.groups() if group is not None)
        spans.append(span)
        place = pair.end()
        if quote[0] != '"':
            continue
        if _CLOSES.match(prompt, start):
            fault = fault or f"{_shown(prompt, start)} closes a quote that was not opened"
        elif _OPENS.match(prompt, place - 1):
            fault = fault or f"{_shown(prompt, place - 1)} opens a quote inside another"
        elif not span and (prompt[place : place + 1].isalnum() or prompt[start - 1 : start].isalnum()):
            fault = fault or f"{_shown(prompt, start)} is doubled"
    return spans, fault


def _single_quoted(prompt: str) -> tuple[list[str], str | None]:
    spans, fault = [], None
    for line in prompt.split("\n"):
        opened, last = -1, ""  # where the open span begins (-1: none is open); the span before it
        for place in [place for place, char in enumerate(line) if char in "'‘’"]:
            opens, closes = _SINGLE_OPENS.match(line, place), _SINGLE_CLOSES.match(line, place)
            if opened < 0:
                if opens:
                    opened = place
                elif closes and last.endswith("s") and not _POSSESSIVE.search(line[max(place - 2, 0) : place]):
                    fault = fault or f"{_shown(line, place)} closes a quote that was not opened"
            elif closes and line[place] == _CLOSED_BY[line[opened]] and place > opened + 1:
                last = line[opened + 1 : place]
                spans.append(last)
                opened = -1
            elif opens and not _ELIDED.match(line, place):
                fault = fault or f"{_shown(line, place)} opens a quote inside another"
        if opened >= 0:
            fault = fault or f"{_shown(line, opened)} has no partner"
    return spans, fault


def _shown(prompt: str, place: int) -> str:
    """The text around a quote, for a message."""
    return f"the quote in {prompt[max(place - 12, 0) : place + 13]!r}"
