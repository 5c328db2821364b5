"""The benchmarks' own files, in small; the texts are ours."""

import json

import pytest

from scripts.text_benchmarks.prompts import read_prompts


def test_cvtg_has_its_texts_in_quotes_and_its_parts_in_file_names(tmp_path, caplog):
    (tmp_path / "CVTG").mkdir()
    rows = [
        {"index": 0, "prompt": "A cafe, 'FRESH BREAD' on the door and 'OPEN' on the sign.", "carrier_list": ["door"]}
    ]
    rows += [{"index": 1, "prompt": 'A bus that says "12".'}]
    (tmp_path / "CVTG" / "2.json").write_text(json.dumps({"data_list": rows}))
    (tmp_path / "CVTG" / "2_combined.json").write_text("the same prompts once more")
    first, second = read_prompts("cvtg-2k", tmp_path)
    assert (first.name, first.texts, first.part) == ("CVTG-2-0", ["FRESH BREAD", "OPEN"], "CVTG-2")
    assert second.texts == ["12"]
    assert "1 prompts quote another number of texts" in caplog.text


def test_longtext_has_a_list_of_texts_a_line(tmp_path):
    row = {"prompt_id": 7, "prompt": "A letter.", "text": ["Dear Ann,", "come home."], "category": "letter"}
    (tmp_path / "text_prompts.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = read_prompts("longtext-bench", tmp_path)
    assert (prompt.name, prompt.texts, prompt.part) == ("0007", ["Dear Ann,", "come home."], "letter")


def test_oneig_takes_its_prompts_of_text_alone(tmp_path):
    (tmp_path / "OneIG-Bench.csv").write_text(
        'category,id,prompt_en\nAnime_Stylization,000,A cat.\nText_Rendering,000,"A sign, with ""SALE""."\n'
    )
    (tmp_path / "text_content.csv").write_text("id,text_content\n000,SALE\n")
    (prompt,) = read_prompts("oneig", tmp_path)
    assert (prompt.name, prompt.prompt, prompt.texts) == ("000", 'A sign, with "SALE".', ["SALE"])


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", r"text_prompts.jsonl:1: not JSON"),
        ('{"prompt_id": 1, "prompt": "A letter."}', r'text_prompts.jsonl:1: expected "text" in each entry'),
        ("", "holds no prompts of longtext-bench"),
    ],
)
def test_a_file_that_is_not_the_benchmark_s_is_refused(tmp_path, line, says):
    (tmp_path / "text_prompts.jsonl").write_text(line)
    with pytest.raises(ValueError, match=says):
        read_prompts("longtext-bench", tmp_path)


def test_a_missing_file_and_an_id_that_leaves_the_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*OneIG"):
        (tmp_path / "text_content.csv").write_text("id,text_content\n../x,SALE\n")
        read_prompts("oneig", tmp_path)
    (tmp_path / "OneIG-Bench.csv").write_text("category,id,prompt_en\nText_Rendering,../x,A sign.\n")
    with pytest.raises(ValueError, match="names a file"):
        read_prompts("oneig", tmp_path)
