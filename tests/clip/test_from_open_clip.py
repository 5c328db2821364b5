import sys
from types import SimpleNamespace

import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from torchcam.methods import GradCAM

from flow_grpo.clip.load import load_clip
from flow_grpo.clip.trace import Request
from flow_grpo.clip_gradcam_scorer import gradcam
from flow_grpo.scorers import make_scorer
from tests.open_clip_models import LENGTH, ResNet, VisionTransformer, make

PROMPTS = ["red cat", "a dog", ""]
MAPS = ["clip_gradient", "clip_gradcam", "clip_attention", "clip_decomposition"]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return make(ResNet())


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return make(VisionTransformer(layer_scale=True))


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(3, 3, 70, 80)


def own_logits(pair, images):
    model, tokenizer = pair
    return model.logits(load_clip(pair).preprocess(images), tokenizer(PROMPTS))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_reward_is_the_models_logit_over_thirty(request, images, name):
    pair = request.getfixturevalue(name)
    score = make_scorer("clipscore", model=pair)(images, PROMPTS)
    torch.testing.assert_close(score.reward, own_logits(pair, images).diagonal() / 30)


@pytest.mark.parametrize("block", [-1, 3, 2, 0])
def test_resnets_gradcam_is_captums_and_torchcams(resnet, block):
    torch.manual_seed(0)
    images, prompts = torch.rand(16, 3, 70, 80), list("abcdefghijklmnop")  # many: a ReLU empties some maps
    model, tokenizer = resnet
    scorer = make_scorer("clip_gradcam", model=resnet, block=block)
    ours = gradcam(*scorer.clip.trace(images, prompts, scorer.request).features[block % 4])

    pixels, tokens = scorer.clip.preprocess(images), tokenizer(prompts)
    logits = torch.nn.Sequential()
    logits.visual = model.visual
    logits.forward = lambda given: model.logits(given, tokens)
    stage, own = f"layer{block % 4 + 1}", list(range(16))
    captums = LayerGradCam(logits, getattr(model.visual, stage)).attribute(pixels, own, relu_attributions=True)[:, 0]
    with GradCAM(logits, f"visual.{stage}") as extractor:
        torchcams = extractor(own, logits(pixels), normalized=False)[0]
    for expected in (captums, torchcams):
        assert ours.shape == expected.shape and expected.amax() > expected.amin()
        assert (ours - expected).abs().max() < 1e-5 * (expected.amax() - expected.amin())


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_gradient_is_captums(request, images, name):
    pair = request.getfixturevalue(name)
    scorer = make_scorer("clip_gradient", model=pair)
    expected = Saliency(lambda given: own_logits(pair, given)).attribute(images.requires_grad_(), [0, 1, 2])
    ours = scorer.clip.trace(images, PROMPTS, scorer.request).pixels.gradient.abs()
    assert (ours - expected).abs().max() < 1e-5 * expected.amax()


def test_vits_terms_sum_to_the_score(vit, images):
    trace = load_clip(vit).trace(images, PROMPTS, Request(contributions=True))
    terms = trace.contributions
    size = terms.tokens.abs().sum((1, 2)) + terms.mlps.abs().sum(1) + terms.constant.abs()
    assert ((terms.total() - trace.logits).abs() < 1e-6 * size).all()


@pytest.mark.parametrize("name", MAPS)
def test_vit_has_every_map(vit, images, name):
    score = make_scorer(name, model=vit)(images, PROMPTS)
    assert score.reward_map.shape == (3, 70, 80) and score.map_valid.all()


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_towers_give_fp32_scores_and_maps(images, name, dtype):
    torch.manual_seed(0)
    pair = make(ResNet() if name == "resnet" else VisionTransformer())
    exact = make_scorer("clip_gradcam", model=pair)(images, PROMPTS)
    half = make_scorer("clip_gradcam", model=pair, dtype=dtype)(images, PROMPTS)
    assert half.reward.dtype == half.reward_map.dtype == torch.float32
    assert (half.reward - exact.reward).abs().max() < 0.05 * exact.reward.abs().max()
    assert (half.reward_map - exact.reward_map)[exact.map_valid].abs().mean() < 0.05


def test_long_prompts_are_counted(vit, images):
    score = make_scorer("clipscore", model=vit)(images, ["a" * (LENGTH - 2), "a" * (LENGTH - 1), ""])
    assert score.details["truncated"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["clip_attention", "clip_decomposition"])
def test_resnet_has_no_attention_to_show(resnet, name):
    with pytest.raises(ValueError, match="a ResNet has no attention between patches"):
        make_scorer(name, model=resnet)


@pytest.mark.parametrize("block", [4, -5])
def test_resnet_has_four_stages(resnet, block):
    with pytest.raises(ValueError, match="layer1 to layer4"):
        make_scorer("clip_gradcam", model=resnet, block=block)


def test_preprocessing_is_the_towers_own():
    visual = VisionTransformer((32, 48))
    visual.preprocess_cfg = {"mean": (0.1,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    preprocess = load_clip(make(visual)).preprocess
    assert (preprocess.crop, preprocess.shortest_edge, preprocess.mean) == ((32, 48), None, (0.1, 0.1, 0.1))
    assert preprocess.rounded_offset


@pytest.mark.parametrize(
    "settings", [{"interpolation": "bilinear"}, {"resize_mode": "longest"}, {"resize_mode": "shortest"}]
)
def test_unknown_preprocessing_is_refused(settings):
    visual = VisionTransformer((32, 48))
    visual.preprocess_cfg = {"interpolation": "bicubic", "resize_mode": "squash"} | settings
    with pytest.raises(ValueError, match="only bicubic"):
        load_clip(make(visual))


@pytest.mark.parametrize(("name", "value"), [("pool_type", "avg"), ("attn_pool", torch.nn.Identity())])
def test_tower_that_pools_otherwise_is_refused(name, value):
    visual = VisionTransformer()
    setattr(visual, name, value)
    with pytest.raises(ValueError, match="only the class token"):
        load_clip(make(visual))


def test_tower_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="Linear is not known here"):
        load_clip(make(torch.nn.Linear(1, 1)))


@pytest.mark.parametrize(
    ("name", "asked"),
    [("open_clip:ViT-L-14/openai", ("ViT-L-14", "openai")), ("open_clip:hf-hub:some/one", ("hf-hub:some/one", None))],
)
def test_named_models_are_loaded_through_the_package(monkeypatch, vit, images, name, asked):
    model, tokenizer = vit
    calls = []
    package = SimpleNamespace(
        create_model=lambda architecture, pretrained: calls.append((architecture, pretrained)) or model,
        get_tokenizer=lambda architecture: calls.append(architecture) or tokenizer,
    )
    monkeypatch.setitem(sys.modules, "open_clip", package)
    score = make_scorer("clipscore", model=name)(images, PROMPTS)
    torch.testing.assert_close(score.reward, own_logits(vit, images).diagonal() / 30)
    assert calls == [asked, asked[0]]


@pytest.mark.parametrize("name", ["open_clip:RN50", "open_clip:", "open_clip:/openai"])
def test_name_without_an_architecture_and_its_weights_is_refused(name):
    with pytest.raises(ValueError, match="open_clip:ARCHITECTURE/PRETRAINED"):
        make_scorer("clipscore", model=name)


def test_missing_package_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        make_scorer("clipscore", model="open_clip:RN50/openai")
