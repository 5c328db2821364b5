import weakref

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from flow_grpo.clip.load import load_clip
from flow_grpo.clip.trace import Request
from flow_grpo.scorers import make_scorer
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog"]


@pytest.fixture(scope="module")
def large():
    """ViT-L/14's depth, patches and width of a head, with two heads instead of sixteen."""
    model, tokenizer = make_clip(
        image_size=224, patch_size=14, num_layers=24, width=128, num_heads=2, intermediate_size=512
    )
    model.requires_grad_(False).set_attn_implementation("eager")  # whose products are counted
    clip = load_clip((model, tokenizer))
    clip.embed_texts(PROMPTS)
    return model, clip


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 64, 64)


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made while this is on have held at once."""

    def __init__(self):
        super().__init__()
        self.held, self.peak, self._known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._hold(leaf.untyped_storage(), given)
        self.peak = max(self.peak, self.held)
        return result

    def _hold(self, storage, given):
        key = storage._cdata
        if key not in self._known and key not in given:
            self._known.add(key)
            self.held += storage.nbytes()
            weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key, size):
        self._known.discard(key)
        self.held -= size


def test_tower_is_the_models_own(images):
    model, tokenizer = make_clip()
    clip = load_clip((model, tokenizer))
    pixels = clip.preprocess(images)
    record = clip.tower.run(pixels, torch.zeros(2, 24), Request())
    torch.testing.assert_close(record.embeds, model.get_image_features(pixel_values=pixels).pooler_output)
    assert not record.embeds.requires_grad


def test_attention_is_the_models_own(images):
    model, tokenizer = make_clip()
    clip = load_clip((model, tokenizer))
    model.set_attn_implementation("eager")
    expected = model.vision_model(clip.preprocess(images), output_attentions=True).attentions
    trace = clip.trace(images, PROMPTS, Request(attention=frozenset({0, 2}), mean_attention=frozenset({1, 2})))
    torch.testing.assert_close(trace.attention[0].value, expected[0])
    torch.testing.assert_close(trace.attention[2].value, expected[2][:, :, :1])
    torch.testing.assert_close(trace.mean_attention[1], expected[1].mean(dim=1))
    torch.testing.assert_close(trace.mean_attention[2], expected[2][:, :, :1].mean(dim=1))


def test_gradient_at_the_last_blocks_output_is_zero_at_the_patches(images):
    model, tokenizer = make_clip()
    pixels = load_clip((model, tokenizer)).preprocess(images)
    outputs = {}
    for name in ("layers.1", "layers.2", "layers.2.layer_norm1"):
        module = model.vision_model.encoder.get_submodule(name)
        module.register_forward_hook(lambda module, given, output, name=name: outputs.update({name: output}))
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    score = model(pixel_values=pixels, **tokens).logits_per_image.diagonal().sum()
    gradients = dict(zip(outputs, torch.autograd.grad(score, list(outputs.values()))))
    assert (gradients["layers.2"][:, 1:] == 0).all() and (gradients["layers.2"][:, 0] != 0).any()
    assert (gradients["layers.1"][:, 1:] != 0).any() and (gradients["layers.2.layer_norm1"][:, 1:] != 0).any()


@pytest.mark.parametrize(
    ("block", "message"), [(3, "exactly zero; use block=-1"), (4, "blocks 0 to 2"), (-4, "blocks 0 to 2")]
)
def test_block_whose_map_cannot_be_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        make_scorer("clip_gradcam", model=make_clip(), block=block)


# Least and most, in forward passes of the image tower: one for the first four, backward passes beside it for the last two.
COSTS = {
    ("clip_gradcam", ()): (0.9, 1.0),
    ("clip_attention", ()): (0.9, 1.0),
    ("clip_decomposition", ()): (0.9, 1.0),
    ("clip_attention", (("gradient_weighted", False),)): (0.9, 1.0),
    ("clip_attention", (("rollout", True), ("gradient_weighted", False))): (0.9, 1.1),
    ("clip_attention", (("rollout", True),)): (1.8, 2.4),
    ("clip_gradient", ()): (1.8, 2.2),
}


def plain_score(model, clip, images):
    with torch.no_grad():
        return model.get_image_features(pixel_values=clip.preprocess(images))


@pytest.mark.parametrize(("name", "options"), COSTS, ids=str)
def test_map_costs_what_the_score_costs(large, images, name, options):
    model, clip = large
    scorer = make_scorer(name, model=clip, **dict(options))
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel is not counted on the CPU
        with FlopCounterMode(display=False) as plain:
            plain_score(model, clip, images)
        with FlopCounterMode(display=False) as ours:
            scorer(images, PROMPTS)
    low, high = COSTS[name, options]
    assert low < ours.get_total_flops() / plain.get_total_flops() <= high


@pytest.mark.parametrize("name", ["clip_gradcam", "clip_attention", "clip_decomposition"])
def test_map_needs_the_memory_of_the_score(large, images, name):
    model, clip = large
    model.set_attn_implementation("sdpa")
    scorer = make_scorer(name, model=clip)
    with PeakMemory() as plain:
        plain_score(model, clip, images)
    with PeakMemory() as ours:
        scorer(images, PROMPTS)
    model.set_attn_implementation("eager")
    assert plain.peak > 4 * 2 * 257 * 512  # the hidden layer of one MLP, at the least
    assert ours.peak < 1.1 * plain.peak
