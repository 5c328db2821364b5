"""The grammar of dataset/ocr/grammar: names, each with choices that may hold other names, drawn at random.

A file lists `name: choice | choice`; a line that begins with a space goes on with the choices, `*3` after a choice counts
it thrice. Names below a line `[bakery.counter]` belong to that subject; what it does not have is looked for in `[bakery]`,
then in what stands before any such line. In a choice, `{name}` is a draw from a name, `{name!}` the same with a capital,
`[one/two/]` a draw in place, whose last may be empty.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Choice = TypeVar("Choice")
Names = dict[str, list[str]]

TARGET = "{T}"  # stays where it is when a text is drawn
_IN_PLACE = re.compile(r"\[([^\[\]]*)\]")
_NAME = re.compile(r"\{([a-z_.0-9]+)(!?)\}")
_WEIGHT = re.compile(r"\s*\*(\d+)$")


def pick(rng: random.Random, choices: Sequence[Choice]) -> Choice:
    """One of the choices, each as likely. By `random()` alone: Python promises its sequence, and not that of `choice`."""
    return choices[int(rng.random() * len(choices))]


@dataclass(frozen=True)
class Grammar:
    """Names of each subject; of the subject "" for all."""

    subjects: dict[str, Names]

    def choices(self, name: str, subject: str) -> list[str]:
        """What a name may be for a subject.

        Raises ValueError where neither the subject, nor its parent, nor the common part has the name.
        """
        for owner in (subject, subject.partition(".")[0], ""):
            if name in self.subjects[owner]:
                return self.subjects[owner][name]
        raise ValueError(f"the grammar has no name {name!r}, neither under [{subject}] nor for all subjects")

    def draw(self, rng: random.Random, name: str, subject: str) -> str:
        """A text for a name, every name and choice in it drawn, `TARGET` left in place."""
        text = pick(rng, self.choices(name, subject))
        text = _IN_PLACE.sub(lambda match: pick(rng, match[1].split("/")), text)

        def drawn(match: re.Match) -> str:
            part = self.draw(rng, match[1], subject)
            return part[:1].upper() + part[1:] if match[2] else part

        return _NAME.sub(drawn, text)


def read_grammar(folder: Path) -> Grammar:
    """The grammar of a folder's text files, in order of their names.

    Raises ValueError with file and line where a line is none of the above, or says anew what a name means.
    """
    subjects: dict[str, Names] = {"": {}}
    for path in sorted(folder.glob("*.txt")):
        names, choices = subjects[""], None
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            head, colon, rest = line.partition(": ")
            if not line.strip() or line.startswith("#"):
                continue
            if re.fullmatch(r"\[[a-z_.]+\]", line) and line[1:-1] not in subjects:
                names, choices = subjects.setdefault(line[1:-1], {}), None
            elif line.startswith(" ") and choices is not None:
                choices += _weighted(line.strip().removeprefix("| "))
            elif re.fullmatch(r"[a-z_.0-9]+", head) and colon and head not in names:
                choices = names[head] = _weighted(rest)
            else:
                raise ValueError(f"{path}:{number}: expected [subject], a new name: choices, or more choices: {line!r}")
    return Grammar(subjects)


def _weighted(line: str) -> list[str]:
    choices = []
    for choice in map(str.strip, line.split("|")):
        weight = _WEIGHT.search(choice)
        choices += [_WEIGHT.sub("", choice)] * (int(weight[1]) if weight else 1)
    return choices
