"""Write Chinese OCR prompts: dataset/ocr_zh/train.txt and test.txt, one prompt per line, each with one or two quoted texts.

    python -m scripts.dataset ocr_zh            # writes both files and prints what README.md there says of them
    python -m scripts.dataset ocr_zh --show 20  # prints that many prompts instead, to be read

The prompts come from the grammar in dataset/ocr_zh/grammar. They are in simplified characters, and quote as Chinese writers do:
“”, 「」 or straight quotes, one kind in a prompt. A text belongs to train or test by the same hash as in dataset/ocr.
"""

import argparse
import random
import re
from collections import Counter

from flow_grpo.text_maps.targets import normalise, prompt_targets
from scripts.dataset import prompt_files
from scripts.dataset.grammar import TARGET, Grammar, pick, read_grammar
from scripts.dataset.ocr import FOLDER as OCR
from scripts.dataset.ocr import split_of

FOLDER = OCR.parent / "ocr_zh"
NUM_PROMPTS = {"train": 1_000, "test": 200}
TARGET_LENGTHS = range(2, 21)  # characters
QUOTES = ("“{}”",) * 2 + ("「{}」",) + ('"{}"',)
SECOND_TEXT_SHARE = 0.2
MAX_REPEATS = 3  # prompts that share a text


def make_prompts(grammar: Grammar, seed: int) -> dict[str, list[str]]:
    """The prompts of each split: no prompt twice, no text more than MAX_REPEATS times."""
    rng = random.Random(seed)
    subjects = [subject for subject in grammar.subjects if subject]
    repeats: Counter[str] = Counter()
    prompts: dict[str, dict[str, None]] = {split: {} for split in NUM_PROMPTS}
    while open_splits := [split for split, number in NUM_PROMPTS.items() if len(prompts[split]) < number]:
        split, subject = pick(rng, open_splits), pick(rng, subjects)
        texts = draw_texts(rng, grammar, subject, split, 2 if rng.random() < SECOND_TEXT_SHARE else 1)
        if all(repeats[text] < MAX_REPEATS for text in texts):
            prompts[split][draw_prompt(rng, grammar, subject, texts)] = None
            repeats.update(texts)
    return {split: list(drawn) for split, drawn in prompts.items()}


def draw_texts(rng: random.Random, grammar: Grammar, subject: str, split: str, number: int) -> list[str]:
    """So many different texts of a split that things of this subject would bear."""
    texts: dict[str, None] = {}
    while len(texts) < number:
        text = grammar.draw(rng, "text", subject)
        if len(text) in TARGET_LENGTHS and split_of(text, NUM_PROMPTS) == split:
            texts[text] = None
    return list(texts)


def draw_prompt(rng: random.Random, grammar: Grammar, subject: str, texts: list[str]) -> str:
    """A prompt around one or two texts."""
    quotes = pick(rng, QUOTES)
    scene = grammar.draw(rng, "scene", subject).replace(TARGET, quotes.format(texts[0]))
    prompt = grammar.draw(rng, "prompt", subject).replace("{SCENE}", scene)
    for text in texts[1:]:
        prompt += "，" + grammar.draw(rng, "more", subject).replace(TARGET, quotes.format(text))
    return prompt + "。"


def figures(prompts: list[str]) -> dict[str, str]:
    """How varied prompts are, as README.md there quotes it."""
    texts = [text for prompt in prompts for text in prompt_targets(prompt)]
    lengths = sorted(map(len, texts))
    return {
        "prompts": f"{len(prompts):,}",
        "with two texts": f"{sum(len(prompt_targets(prompt)) == 2 for prompt in prompts) / len(prompts):.0%}",
        "distinct texts": f"{len(set(map(normalise, texts))):,}",
        "distinct characters in texts": f"{len(set(''.join(texts))):,}",
        "characters of a text": f"{lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}",
        "texts with a digit": f"{sum(bool(re.search('[0-9]', text)) for text in texts) / len(texts):.0%}",
        "texts with a punctuation mark": f"{sum(bool(re.search('[，。！：、《》（）%.]', text)) for text in texts) / len(texts):.0%}",
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompt_files.add_arguments(parser, FOLDER, write_prompts)


def write_prompts(args: argparse.Namespace) -> None:
    prompts = make_prompts(read_grammar(FOLDER / "grammar"), args.seed)
    if args.show:
        print("\n".join(prompts["train"][: args.show]))
        return
    prompt_files.write(prompts, args.out, encoding="utf-8")
    rows = {split: figures(lines) for split, lines in prompts.items()}
    print("| | train | test |\n|---|---|---|")
    print("\n".join(f"| {name} | {value} | {rows['test'][name]} |" for name, value in rows["train"].items()))
