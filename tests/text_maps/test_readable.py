import json

import pytest

from flow_grpo.text_maps.readable import PromptReader, known_characters


class EngineOf:
    """An engine that knows these characters."""

    def __init__(self, characters):
        self.known_characters = frozenset(characters)


def reader(engine, **options):
    return PromptReader(engine, options, "flow_grpo")


def test_characters_of_the_wheels_recogniser():
    known = known_characters("rapidocr", {})
    assert known == known_characters("paddleocr", {}) and len(known) > 18_000
    assert known >= set("aZ09!") | set("你好") and not known & set("МОСКВАשסⵣ한")


def test_characters_of_a_folders_recogniser(tmp_path):
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "inference.yml").write_text(json.dumps({"PostProcess": {"character_dict": ["a", "ж"]}}))
    assert known_characters("paddleocr", {"weights": tmp_path}) == {"a", "ж"}


def test_engine_that_does_not_say_is_not_asked():
    assert known_characters(lambda image: [], {}) is None
    assert reader(lambda image: []).targets(['says "МОСКВА"']) == [["МОСКВА"]]


@pytest.mark.parametrize("word", ["МОСКВА", "שלום", "سلام", "สวัสดี", "नमस्ते"])
def test_script_that_the_engine_lacks_is_refused_with_its_characters(word):
    with pytest.raises(ValueError, match=f"cannot read {word[0].lower()} .* asks for: every image would score about 0"):
        reader("rapidocr").targets([f'a sign that says "{word}"'])


def test_few_characters_that_the_engine_lacks_are_warned_of_once(caplog):
    prompts = reader(EngineOf("openOPEN"))
    for _ in range(2):
        assert prompts.targets(['says "OPEN ☂"']) == [["OPEN ☂"]]
    assert len(caplog.records) == 1 and "cannot read ☂" in caplog.text


def test_letters_count_in_either_case():
    reader(EngineOf("ÉT")).targets(['says "été"'])
