import json

import pytest

from flow_grpo.text_maps.readable import PromptReader, known_characters


def warnings(caplog):
    """Without what other libraries say, perhaps of an earlier test."""
    return [record for record in caplog.records if record.name.startswith("flow_grpo")]


class EngineOf:
    """An engine that knows these characters."""

    def __init__(self, characters):
        self.known_characters = frozenset(characters)


def reader(engine, normalisation="flow_grpo", **options):
    return PromptReader(engine, options, normalisation)


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
    (warning,) = warnings(caplog)
    assert "cannot read ☂" in warning.message


@pytest.mark.parametrize(
    ("normalisation", "known", "target", "lacking"),
    [
        ("unicode", "½", "½ off", None),  # NFKC is 1⁄2, whose ⁄ the engine never gives and need not give
        ("unicode", "No", "№ 5", None),
        ("flow_grpo", "No", "№ 5", "№"),  # "No" is another text without NFKC
        ("unicode", "ﬁ", "ﬁsh", None),
        ("flow_grpo", "é", "cafe\u0301", None),  # one character or two
    ],
)
def test_a_character_is_lacking_if_nothing_that_the_engine_gives_equals_it(
    normalisation, known, target, lacking, caplog
):
    engine = EngineOf(known + "5ofshca")
    assert reader(engine, normalisation).targets([f'says "{target}"']) == [[target]]
    assert [record.args[0][-1] for record in warnings(caplog)] == ([] if lacking is None else [lacking])


def test_letters_count_in_either_case():
    reader(EngineOf("ÉT")).targets(['says "été"'])
