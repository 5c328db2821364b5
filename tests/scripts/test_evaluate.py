"""scripts/evaluate.py: what it takes, and what it refuses before any weights are loaded."""

import json

import pytest
from evaluate import main


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--num-prompts", "-3"], "must be a whole number, 0 or more, got -3"),
        (["--config.modle=models/tiny-sd3"], "unknown field modle; did you mean model?"),
        (["--shet", "samples.png"], "unexpected argument --shet"),
        (["--sheet", "nowhere/samples.png"], "there is no folder nowhere; make it first"),
        (["--sheet", "samples"], "must end in the name of an image format"),
        (["--lora", "nowhere"], "--lora nowhere is no folder"),
        (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    ],
)
def test_what_it_does_not_know_is_refused(arguments, says, capsys):
    with pytest.raises(SystemExit):
        main(["tiny_ocr_map", *arguments])
    assert says in capsys.readouterr().err


def test_it_says_when_there_are_fewer_prompts_and_takes_any_field(tmp_path, capsys):
    (tmp_path / "test.txt").write_text('a red circle and a blue sign "HUT"\n')
    fields = ["--config.sample.eval_num_steps=1", f"--config.dataset={tmp_path}", "--config.model=models/tiny-sd3"]
    fields += ["--config.rewards={'jpeg_compressibility': 1.0}", "--config.reward_options={}"]
    main(["tiny_ocr_map", "--num-prompts", "5", "--batch-size", "1", *fields])
    shown = capsys.readouterr()
    assert "has 1 test prompts, fewer than the 5 asked for" in shown.err
    metrics = json.loads(shown.out)
    assert "eval/reward" in metrics and 0 <= metrics["eval/gold/scripts.pretrain.judge_scorer:SignsJudge/letters"] <= 1


def test_prompts_that_a_gold_scorer_cannot_judge_are_named_by_their_line(tmp_path):
    (tmp_path / "test.txt").write_text('a red circle and a blue sign "HUT"\na cat on a "MAT"\n')
    fields = ["--config.rewards={'jpeg_compressibility': 1.0}", "--config.reward_options={}"]
    with pytest.raises(ValueError, match="test.txt:2.*eval_rewards"):
        main(["tiny_ocr_map", "--num-prompts", "2", "--dataset", str(tmp_path), *fields])
