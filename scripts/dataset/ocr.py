"""Write the OCR prompts: dataset/ocr/train.txt and test.txt, one prompt per line, each with one target in double quotes.

    python -m scripts.dataset ocr            # writes both files and prints what README.md there says of them
    python -m scripts.dataset ocr --show 40  # prints that many prompts instead, to be read

The prompts come from the grammar in dataset/ocr/grammar. A target belongs to train or test by a hash of what OCR rewards
compare, so that no target of test.txt is in train.txt.
"""

import argparse
import hashlib
import random
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from flow_grpo.text_maps.targets import normalise, quoted_targets
from scripts.dataset import prompt_files
from scripts.dataset.grammar import TARGET, Grammar, pick, read_grammar

FOLDER = Path(__file__).parents[2] / "dataset" / "ocr"
NUM_PROMPTS = {"train": 20_000, "test": 1_000}
TARGET_LENGTHS = range(2, 30)  # characters
ONE_WORD_SHARE = 0.05
MAX_REPEATS = 3  # prompts that share a target
FRONTED_SHARE = 0.25  # of the scenes whose text can stand before what carries it
SENTENCE_SHARE, PERIOD_SHARE = 0.8, 0.4  # of the prompts that begin with a capital, that end with a period

# How a sign spells its text, as often as it stands here.
SPELLINGS = ("as written",) * 5 + ("title",) * 8 + ("upper",) * 5 + ("lower",) * 2
_SMALL_WORDS = re.compile(r"an?|and|at|by|for|from|in|is|of|on|or|per|the|to|vs|via|with|[ap]m|[kc]?m|k?g|min|ml|bpm|s")
# The grammar writes "a" throughout. It becomes "an" before the sound of a vowel, which is not always its letter.
_AN = re.compile(r"\ba (?=(?i:(?!one\b|once|use|uni(?!m|n)|euro|ufo)[aeiou]|8|1[18]\b|hour|honest|heirloom)|LED\b)")


def draw_target(rng: random.Random, grammar: Grammar, subject: str, name: str) -> str:
    """A text that something of this subject would bear: a "word", or a "target" of several."""
    while True:
        text = grammar.draw(rng, name, subject)
        text = _AN.sub("an ", text)
        if len(text) in TARGET_LENGTHS and (name == "word" or " " in text) and not _repeats(text, 3):
            return _spelled(text[0].upper() + text[1:], pick(rng, SPELLINGS))


def _spelled(text: str, spelling: str) -> str:
    if spelling == "upper":
        return text.upper()
    if spelling == "lower":
        return text.lower()
    if spelling == "title":
        return " ".join(w if _SMALL_WORDS.fullmatch(w.strip(",:?")) else w[0].upper() + w[1:] for w in text.split(" "))
    return text


def draw_prompt(rng: random.Random, grammar: Grammar, subject: str, target: str) -> str:
    """A prompt around a target."""
    while True:
        text = _placed(rng, grammar, subject)
        text = _AN.sub("an ", text)
        if not _repeats(text, 4):
            break
    if " " not in target:
        text = text.replace("the words {T}", "the word {T}")
    if ". " in text or rng.random() < SENTENCE_SHARE:
        text = re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text)
    text = text.replace(TARGET, f'"{target}"')
    if rng.random() < PERIOD_SHARE and text.rstrip('"')[-1] not in ".!?":
        text += "."
    return text


def _placed(rng: random.Random, grammar: Grammar, subject: str) -> str:
    """A prompt with TARGET in it. A scene that ends in `+painted` has its text behind or before the thing that bears it."""
    scene = grammar.draw(rng, "scene", subject)
    thing, plus, manner = scene.partition(" +")
    if plus and rng.random() < FRONTED_SHARE:
        scene = f"{grammar.draw(rng, f'{manner}.front', subject)} {thing}"
    elif plus:
        scene = f"{thing} {grammar.draw(rng, manner, subject)}"
    return grammar.draw(rng, "prompt", subject).replace("{SCENE}", scene)


def _repeats(text: str, num_letters: int) -> bool:
    """Whether a word of so many letters or more comes twice, as it seldom does where a person writes."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) >= num_letters]
    return len(set(words)) < len(words)


def split_of(target: str, sizes: Mapping[str, int] = NUM_PROMPTS) -> str:
    """The split that a target belongs to, however it is spelled. sizes: the prompts of each split, which set the shares."""
    number = int.from_bytes(hashlib.sha256(normalise(target).encode()).digest()[:8], "big")
    return "test" if number % sum(sizes.values()) < sizes["test"] else "train"


def make_prompts(grammar: Grammar, seed: int) -> dict[str, list[str]]:
    """The prompts of each split: no prompt twice, no target more than MAX_REPEATS times."""
    rng = random.Random(seed)
    # A subject that others share names of has no scene itself.
    subjects = {
        name: [s for s, names in grammar.subjects.items() if {"scene", name} <= set(names)]
        for name in ("word", "target")
    }
    repeats = Counter()
    prompts: dict[str, dict[str, None]] = {split: {} for split in NUM_PROMPTS}
    while any(len(prompts[split]) < num for split, num in NUM_PROMPTS.items()):
        name = "word" if rng.random() < ONE_WORD_SHARE else "target"
        subject = pick(rng, subjects[name])
        target = draw_target(rng, grammar, subject, name)
        split, key = split_of(target), normalise(target)
        if len(prompts[split]) < NUM_PROMPTS[split] and repeats[key] < MAX_REPEATS:
            prompts[split][draw_prompt(rng, grammar, subject, target)] = None
            repeats[key] += 1
    return {split: list(drawn) for split, drawn in prompts.items()}


def figures(prompts: list[str]) -> dict[str, str]:
    """How varied prompts are, as README.md there quotes it."""
    targets = [quoted_targets(prompt)[0] for prompt in prompts]
    scenes = [prompt.replace(f'"{target}"', "") for prompt, target in zip(prompts, targets)]
    bins = Counter(len(target) // 5 * 5 for target in targets)
    return {
        "prompts": f"{len(prompts):,}",
        "words of a prompt": _range([len(prompt.split()) for prompt in prompts]),
        "distinct scenes (the prompt without its target)": f"{len(set(scenes)):,}",
        "distinct words in scenes": f"{_num_words(scenes):,}",
        "distinct targets (without case and spaces)": f"{len(set(map(normalise, targets))):,}",
        "distinct words in targets": f"{_num_words(targets):,}",
        "targets of several words": f"{sum(' ' in target for target in targets) / len(targets):.1%}",
        "characters of a target": _range([len(target) for target in targets]),
        **{f"{max(start, 2)} to {start + 4}": f"{bins[start] / len(targets):.1%}" for start in range(0, 30, 5)},
    }


def _range(counts: list[int]) -> str:
    return f"{min(counts)} to {max(counts)}, median {statistics.median(counts):.0f}"


def _num_words(texts: list[str]) -> int:
    return len({word for text in texts for word in re.findall(r"[a-z][a-z'-]*", text.lower())})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompt_files.add_arguments(parser, FOLDER, write_prompts)


def write_prompts(args: argparse.Namespace) -> None:
    prompts = make_prompts(read_grammar(FOLDER / "grammar"), args.seed)
    if args.show:
        print("\n".join(prompts["train"][: args.show]))
        return
    rows = {split: figures(lines) for split, lines in prompts.items()}
    prompt_files.write(prompts, args.out)
    print("| | train | test |\n|---|---|---|")
    print("\n".join(f"| {name} | {value} | {rows['test'][name]} |" for name, value in rows["train"].items()))
