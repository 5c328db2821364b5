"""docs/add-a-model.md, followed to the letter: the page's file and its row make a policy that draws as its pipeline does."""

import re
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

from config.grpo import get_config
from config.validation import resolve
from flow_grpo.training.policies.families import FAMILIES
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, replay, rollout
from tests.training.policies.tiny.parts import vae

PAGE = Path("docs/add-a-model.md").read_text(encoding="utf-8")
PROMPTS = ["a sign", 'a green star and a black sign that says "SOB"']


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auraflow") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pos_embed_max_size=64,
        )
        text = UMT5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
        AuraFlowPipeline(
            tokenizer=ByT5Tokenizer(),
            text_encoder=UMT5EncoderModel(text),
            vae=vae(shift_factor=None),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """Steps 2 and 3: the page's file under the name that the page's row gives it."""
    (file,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    ((family, module, name),) = re.findall(r'"(\w+)": "flow_grpo\.training\.policies\.(\w+):(\w+)"', PAGE)
    folder = tmp_path_factory.mktemp("added")
    (folder / f"{module}.py").write_text(file, encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    patch.setitem(FAMILIES, family, f"{module}:{name}")
    yield family
    patch.undo()
    sys.modules.pop(module, None)


def make_policy(family, model, **options):
    settings = dict(resolution=(32, 48), lora_rank=4, lora_alpha=8, max_sequence_length=72)
    return load_policy(family, model, "no", **settings | options)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_the_pages_family_draws_what_its_pipeline_draws(added, model, guidance_scale):
    policy = make_policy(added, model, guidance_scale=guidance_scale)
    drawn = rollout(policy, PROMPTS, [5, 6], SDE(3, noise_level=0.0), num_kept=3)
    pipeline = AuraFlowPipeline.from_pretrained(model)
    expected = pipeline(
        list(PROMPTS),
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        latents=drawn.latents[:, 0],
        max_sequence_length=72,
        output_type="pt",
    ).images
    assert (expected[0] - expected[1]).abs().max() > 0.01, "images all alike would prove nothing"
    # fp32; the pipeline takes the halves of a guided batch in another order
    torch.testing.assert_close(drawn.images, expected, atol=2e-5, rtol=0)


def test_the_pages_family_starts_with_a_ratio_of_exactly_one(added, model):
    policy, sde = make_policy(added, model), SDE(3, noise_level=0.7)
    trajectories = rollout(policy, PROMPTS, [1, 2], sde, num_kept=2)
    assert torch.equal(replay(policy, trajectories, 1, sde).log_prob, trajectories.log_probs[:, 1])


def test_the_row_is_all_that_a_configuration_asks_for(added):
    config = get_config("tiny_ocr_map")
    config.policy = added
    assert resolve(config, num_processes=1)[0].policy == "auraflow"
