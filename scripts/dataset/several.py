"""Write prompts with 2 to 5 texts each: dataset/several/train.txt and test.txt, as people ask for posters and street scenes.

    python -m scripts.dataset several            # writes both files
    python -m scripts.dataset several --show 20  # prints that many prompts instead, to be read

The first text stands in a scene of dataset/ocr, the others follow with their places. About one of them in five is a whole sentence with
its punctuation. A text belongs to train or test by the same hash as in dataset/ocr, so that neither set trains on a text that
the other holds out.
"""

import argparse
import random

from flow_grpo.text_maps.targets import normalise
from scripts.dataset import prompt_files
from scripts.dataset.grammar import TARGET, Grammar, pick, read_grammar
from scripts.dataset.ocr import FOLDER as OCR
from scripts.dataset.ocr import draw_prompt, draw_target, split_of

FOLDER = OCR.parent / "several"
NUM_PROMPTS = {"train": 2_000, "test": 200}
NUM_TEXTS = (2, 2, 2, 3, 3, 3, 4, 4, 5)  # as often as each stands here
SENTENCE_SHARE = 0.2
MAX_LENGTH = 300  # characters of all texts of a prompt


def make_prompts(grammar: Grammar, seed: int) -> dict[str, list[str]]:
    """The prompts of each split, no prompt twice."""
    rng = random.Random(seed)
    subjects = [name for name, names in grammar.subjects.items() if {"scene", "target"} <= set(names)]
    prompts: dict[str, dict[str, None]] = {split: {} for split in NUM_PROMPTS}
    while open_splits := [split for split, number in NUM_PROMPTS.items() if len(prompts[split]) < number]:
        split = open_splits[-1]
        subject = pick(rng, subjects)
        texts = draw_texts(rng, grammar, subject, split, pick(rng, NUM_TEXTS))
        prompts[split][draw_several(rng, grammar, subject, texts)] = None
    return {split: list(drawn) for split, drawn in prompts.items()}


def draw_texts(rng: random.Random, grammar: Grammar, subject: str, split: str, number: int) -> list[str]:
    """So many texts of a split, no two alike; the first is one that the subject's scene bears."""
    texts: list[str] = []
    while len(texts) < number:
        if texts and rng.random() < SENTENCE_SHARE:
            text = grammar.draw(rng, "more.notice", subject)
        else:
            text = draw_target(rng, grammar, subject, "target")
        taken = {normalise(other) for other in texts}
        short = sum(map(len, texts)) + len(text) <= MAX_LENGTH
        if split_of(text) == split and normalise(text) not in taken and short:
            texts.append(text)
    return texts


def draw_several(rng: random.Random, grammar: Grammar, subject: str, texts: list[str]) -> str:
    """A prompt around the texts, in their order."""
    while True:
        first = draw_prompt(rng, grammar, subject, texts[0])
        sentences = [grammar.draw(rng, "more", subject) for _ in texts[1:]]
        openings = [sentence.partition(TARGET)[0] for sentence in sentences]
        if len({_place(grammar, opening) for opening in openings}) == len(openings):
            break
    parts = [first if first.rstrip('"').endswith((".", "!", "?")) else first + "."]
    for sentence, text in zip(sentences, texts[1:], strict=True):
        period = "" if text.endswith((".", "!", "?")) else "."
        parts.append(sentence.replace(TARGET, f'"{text}"') + period)
    return " ".join(parts)


def _place(grammar: Grammar, sentence: str) -> str:
    """Where a sentence puts its text: no two texts of a picture are in one place."""
    return max((place for place in grammar.choices("more.place", "") if place in sentence.lower()), key=len)


def joined_grammar() -> Grammar:
    """That of dataset/ocr, and beside it the names of dataset/several."""
    ocr, more = read_grammar(OCR / "grammar"), read_grammar(FOLDER / "grammar")
    return Grammar({**ocr.subjects, "": ocr.subjects[""] | more.subjects[""]})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompt_files.add_arguments(parser, FOLDER, write_prompts)


def write_prompts(args: argparse.Namespace) -> None:
    prompts = make_prompts(joined_grammar(), args.seed)
    if args.show:
        print("\n".join(prompts["train"][: args.show]))
        return
    prompt_files.write(prompts, args.out)
