"""The OCR prompts: what the script writes, in the form that Flow-GRPO reads, in English that a person could have written."""

import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from flow_grpo.text_maps.targets import normalise, quoted_targets
from flow_grpo.training.data import load_prompts
from scripts.dataset.grammar import Grammar, pick, read_grammar
from scripts.dataset.ocr import (
    FOLDER,
    MAX_REPEATS,
    NUM_PROMPTS,
    ONE_WORD_SHARE,
    TARGET_LENGTHS,
    draw_prompt,
    figures,
    make_prompts,
    split_of,
)

SPLITS = ("train", "test")


@cache
def prompts(split):
    return load_prompts(FOLDER, split)


@cache
def targets(split):
    return [quoted_targets(prompt)[0] for prompt in prompts(split)]


@cache
def grammar():
    return read_grammar(FOLDER / "grammar")


def scenes():
    """Every prompt of both splits, with T for its target."""
    return [
        prompt.replace(f'"{target}"', "T")
        for split in SPLITS
        for prompt, target in zip(prompts(split), targets(split), strict=True)
    ]


def test_the_script_writes_the_committed_files_byte_for_byte(tmp_path):
    root = Path(__file__).parents[3]
    # another hash seed than this process's: no order of a set may reach the files
    environment = {"PYTHONPATH": str(root), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "scripts.dataset", "ocr", "--out", tmp_path / "ocr"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for split in SPLITS:
        assert (tmp_path / "ocr" / f"{split}.txt").read_bytes() == (FOLDER / f"{split}.txt").read_bytes()


def test_another_seed_gives_other_prompts():
    assert len(set(make_prompts(grammar(), seed=1)["test"]) & set(prompts("test"))) < 10


@pytest.mark.parametrize("split", SPLITS)
def test_every_prompt_asks_for_one_straight_quoted_text_in_ascii(split):
    assert len(prompts(split)) == len(set(prompts(split))) == NUM_PROMPTS[split]
    for prompt, target in zip(prompts(split), targets(split), strict=True):
        assert prompt.isascii() and prompt.count('"') == 2 and quoted_targets(prompt) == [target]
        assert target == target.strip() and len(target) in TARGET_LENGTHS


def test_no_target_of_test_is_in_train_however_it_is_spelled():
    keys = {split: set(map(normalise, targets(split))) for split in SPLITS}
    assert not keys["train"] & keys["test"]
    assert split_of("Open Late") == split_of("OPENLATE") == split_of("open late")


@pytest.mark.parametrize("split", SPLITS)
def test_most_targets_have_several_words_and_none_comes_often(split):
    several = sum(" " in target for target in targets(split)) / len(targets(split))
    # three standard deviations of a share of 5% among 1,000 are 2.1%
    assert several == pytest.approx(1 - ONE_WORD_SHARE, abs=0.021)
    assert max(Counter(map(normalise, targets(split))).values()) <= MAX_REPEATS


def test_targets_are_of_every_case_with_the_signs_that_people_use():
    upper = sum(target.isupper() for target in targets("train")) / len(targets("train"))
    lower = sum(target.islower() for target in targets("train")) / len(targets("train"))
    assert 0.2 < upper < 0.35 and 0.05 < lower < 0.2
    for sign in ("$", ":", "%", "&", "'", ",", "?", "!", "-", "+"):
        assert any(sign in target for target in targets("test"))


def test_articles_agree_with_what_follows():
    sounds_like_a_consonant = r"(?:uni|one\b|use|euro|ufo)"
    sounds_like_a_vowel = r"(?:LED|hour|honest|8|1[18])"
    wrong = re.compile(
        rf"\ba (?!{sounds_like_a_consonant})[aeiou]|\ban (?!{sounds_like_a_vowel})[^aeiou]", re.IGNORECASE
    )
    assert [scene for scene in scenes() if wrong.search(scene)] == []


def test_plurals_are_spelled_as_english_spells_them():
    wrong = re.compile(r"(?:x|z|ch|sh|sss|[^aeiou\W]y)s\b", re.IGNORECASE)
    assert [text for text in [*targets("train"), *targets("test"), *scenes()] if wrong.search(text)] == []


def test_nothing_of_the_grammar_is_left_in_a_prompt():
    leftover = re.compile(r"[{}\[\]|*+]|  | [,.]|,$|\.\.")
    assert [scene for scene in scenes() if leftover.search(scene)] == []


def test_a_single_word_is_not_called_words():
    for split in SPLITS:
        for prompt, target in zip(prompts(split), targets(split), strict=True):
            assert " " in target or f'the words "{target}"' not in prompt.lower()


def test_readme_quotes_prompts_and_figures_as_they_are():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    quoted = [line.strip() for line in readme.splitlines() if line.startswith("    ") and '"' in line]
    assert quoted and set(quoted) <= set(prompts("test"))
    rows = {split: figures(prompts(split)) for split in SPLITS}
    for name, value in rows["train"].items():
        assert f"| {name} | {value} | {rows['test'][name]} |" in readme


def references():
    """(subject, name) of every name that a choice of the grammar holds."""
    for subject, names in grammar().subjects.items():
        for name, choices in names.items():
            for choice in choices:
                yield from ((subject, found) for found in re.findall(r"\{([a-z_.0-9]+)!?\}", choice))
                _, plus, manner = choice.partition(" +") if name == "scene" else ("", "", "")
                yield from ((subject, found) for found in (manner, f"{manner}.front") if plus)


def test_every_subject_has_all_names_that_its_prompts_need_and_every_name_is_used():
    entries = [(s, n) for s, names in grammar().subjects.items() if "scene" in names for n in ("prompt", "target")]
    used = {"prompt", "scene", "target", "word"}
    while entries:
        subject, name = entries.pop()
        for choice in grammar().choices(name, subject):
            found = set(re.findall(r"\{([a-z_.0-9]+)!?\}", choice))
            entries += [(subject, other) for other in found if (subject, other) not in entries and other != name]
            used |= found
    named = {name for names in grammar().subjects.values() for name in names}
    assert named - used - {name for _, name in references()} == set()
    for subject, name in references():
        if subject:
            assert grammar().choices(name, subject)


def test_a_subject_comes_before_its_parent_and_that_before_what_all_share(tmp_path):
    (tmp_path / "a.txt").write_text(
        "# comment\nx: 1\ny: 1 *2 | 2\n 3 | 4\nz: 1\n\n[shop]\ny: {x}{y2!}\ny2: b\n[shop.door]\nz: {y}[-]{T}\n"
    )
    grammar = read_grammar(tmp_path)
    assert grammar.choices("y", "") == ["1", "1", "2", "3", "4"]
    assert grammar.draw(random.Random(0), "z", "shop.door") == "1B-{T}"
    assert grammar.draw(random.Random(0), "z", "shop") == "1"
    with pytest.raises(ValueError, match=r"no name 'w', neither under \[shop\]"):
        grammar.draw(random.Random(0), "w", "shop")


@pytest.mark.parametrize("line", ["x: again", "no colon", " choices of nothing", "[shop]"])
def test_a_line_that_is_no_grammar_is_refused_by_file_and_line(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"x: 1\n[shop]\n{line if line != 'x: again' else 'x: 1'}\n{line}\n")
    with pytest.raises(ValueError, match=r"a.txt:[34]: expected"):
        read_grammar(tmp_path)


def test_choices_are_drawn_evenly():
    rng = random.Random(0)
    drawn = Counter(pick(rng, "abcd") for _ in range(4000))
    # a share of 1/4 among 4,000 has a standard deviation of 27
    assert all(abs(drawn[letter] - 1000) < 110 for letter in "abcd")


def test_text_goes_behind_or_before_what_bears_it():
    sign = {
        "": {"prompt": ["{SCENE}"], "scene": ["a oak sign +painted"], "painted": ["with the words {T}"]}
        | {"painted.front": ["{T} painted on"]}
    }
    rng = random.Random(0)
    drawn = {draw_prompt(rng, Grammar(sign), "", "Open").rstrip(".").lower() for _ in range(60)}
    assert drawn == {'an oak sign with the word "open"', '"open" painted on an oak sign'}
