"""What is Qwen-Image 2.1's own: a processor without torchvision, sigmas that the model brings, prompts that are not cut."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from flow_grpo.training.build import check_lengths
from flow_grpo.training.rollout import SDE, rollout


@pytest.fixture(scope="module")
def family(make_family):
    return make_family("qwenimage21")


@pytest.fixture(scope="module")
def policy(family):
    return family.make_policy()


def test_the_processor_reads_text_as_the_whole_one_does(policy, prompts, monkeypatch):
    """The whole one can be made without torchvision only where the type of its part for films is not asked."""
    ours, texts = policy.pipeline.processor, ["a sign", *prompts]
    monkeypatch.setattr(Qwen3VLProcessor, "check_argument_for_proper_class", lambda *_: None)
    parts = (Qwen2VLImageProcessorPil(), ours.tokenizer, Qwen3VLVideoProcessor())
    whole = Qwen3VLProcessor(*parts, chat_template=ours.tokenizer.chat_template)
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    read, expected = ours(text=texts, **options), whole(text=texts, **options)
    assert torch.equal(read.input_ids, expected.input_ids)
    assert torch.equal(read.attention_mask, expected.attention_mask) and not read.attention_mask.all()
    message = [{"role": "system", "content": [{"type": "text", "text": policy.pipeline.sys_prompt}]}]
    options = {"tokenize": True, "return_dict": False}
    assert ours.apply_chat_template(message, **options) == whole.apply_chat_template(message, **options)


def test_a_pipeline_that_is_saved_again_names_the_published_classes(family, policy, tmp_path):
    policy.pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "QwenImage21Pipeline" and index["processor"] == ["transformers", "Qwen3VLProcessor"]
    ours, saved = ({p.name for p in (folder / "processor").iterdir()} for folder in (family.folder, tmp_path))
    assert saved == ours


def test_a_distilled_models_own_sigmas_are_taken_and_fix_the_number_of_steps(make_family, prompts):
    family = make_family("qwenimage21", sample_sigmas=[1.0, 0.8, 0.3])
    policy = family.make_policy()
    drawn = rollout(policy, prompts, [5, 6], SDE(3, noise_level=0.0), num_kept=3)
    expected = family.draw(family.load_pipeline(), prompts, drawn.latents[:, 0], num_steps=10)  # which it ignores
    torch.testing.assert_close(drawn.next_latents[:, -1], expected, atol=4e-5, rtol=0)  # fp32, three steps
    with pytest.raises(ValueError, match="num_steps=10, but this model brings the sigmas of 3 steps"):
        policy.sigmas(10)


def test_a_prompt_that_is_too_long_is_refused_at_the_start_by_file_and_line(policy, tmp_path):
    (tmp_path / "train.txt").write_text("a sign\n" + "a sign " * 20)
    (tmp_path / "test.txt").write_text("a sign")
    with pytest.raises(ValueError, match="train.txt:2: a prompt has .* tokens with its chat template, more than max"):
        check_lengths(policy, SimpleNamespace(dataset=tmp_path, max_sequence_length=policy.max_sequence_length))


def test_a_prompt_is_refused_rather_than_cut(policy):
    with pytest.raises(ValueError, match=r"more than max_sequence_length=72; set it to \d+ or more"):
        policy.encode_prompts(["a sign " * 20])
