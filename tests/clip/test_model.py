import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flow_grpo.clip import load as clip_load
from flow_grpo.clip import model as clip_model
from flow_grpo.clip.load import load_clip
from flow_grpo.clip.model import ClipModel
from flow_grpo.clip.trace import Request
from flow_grpo.clip.vit import VitTower
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog", ""]
EVERYTHING = Request(
    pixels=True,
    features=frozenset({0, 2}),
    attention=frozenset({1, 2}),
    mean_attention=frozenset({0, 1, 2}),
    contributions=True,
)


@pytest.fixture(scope="module")
def pair():
    return make_clip()


@pytest.fixture(scope="module")
def clip(pair):
    return load_clip(pair)


@pytest.fixture
def folder(tmp_path, pair):
    for part in pair:
        part.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(3, 3, 40, 56)


def leaves(trace):
    """Every tensor of a trace, by name."""
    contributions = trace.contributions
    named = {"logits": trace.logits, "pixels": trace.pixels.gradient, "tokens": contributions.tokens}
    named |= {"mlps": contributions.mlps, "constant": contributions.constant}
    for name in ("features", "attention"):
        for block, kept in getattr(trace, name).items():
            named |= {f"{name}{block}": kept.value, f"{name}{block} gradient": kept.gradient}
    return named | {f"mean attention{block}": value for block, value in trace.mean_attention.items()}


def assert_same(trace, other, tolerance):
    for name, value in leaves(trace).items():
        difference = (value - leaves(other)[name]).abs().max()
        assert difference <= tolerance * value.abs().max(), name


def test_logits_are_the_models_own(pair, clip, images):
    model, tokenizer = pair
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = model(pixel_values=clip.preprocess(images), **tokens).logits_per_image.diagonal()
    torch.testing.assert_close(clip.trace(images, PROMPTS).logits, expected)


def test_folder_gives_the_same_and_is_loaded_once(folder, clip, images):
    loaded = load_clip(folder)
    torch.testing.assert_close(loaded.trace(images, PROMPTS).logits, clip.trace(images, PROMPTS).logits)
    assert load_clip(folder) is loaded and load_clip(folder, dtype="float32") is loaded
    assert load_clip(folder, dtype="bfloat16") is not loaded
    assert load_clip(loaded) is loaded and load_clip(Path(folder)) is loaded


def test_loaded_model_is_taken_apart_once(pair, clip):
    assert load_clip(pair) is clip and load_clip(*pair) is clip
    assert load_clip(make_clip()) is not clip


def test_model_goes_with_its_last_user(folder):
    loaded = load_clip(folder)
    assert loaded in clip_load._LOADED.values()
    gone = weakref.ref(loaded)
    del loaded
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "a loaded CLIP of transformers or open_clip, got Linear"),
        ({"model": "some/folder", "tokenizer": "one"}, "comes with its own tokenizer"),
        ({"model": "some/folder", "dtype": "int8"}, "one of float32, float16, bfloat16, got 'int8'"),
    ],
)
def test_what_is_no_clip_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_clip(**arguments)


def test_loaded_model_wants_its_tokenizer(pair, clip):
    with pytest.raises(ValueError, match="needs its tokenizer"):
        load_clip(pair[0])
    with pytest.raises(ValueError, match="has its tokenizer"):
        load_clip(clip, tokenizer=pair[1])


def test_prompt_is_embedded_once(monkeypatch, images):
    model, tokenizer = make_clip()
    seen = []
    embed = model.get_text_features
    monkeypatch.setattr(
        model, "get_text_features", lambda **inputs: seen.append(len(inputs["input_ids"])) or embed(**inputs)
    )
    clip = load_clip((model, tokenizer))
    first = clip.trace(images, ["red cat", "red cat", "a dog"]).logits
    assert torch.equal(clip.trace(images, ["red cat", "red cat", "a dog"]).logits, first)
    clip.embed_texts(["a dog", "a bird"])
    assert seen == [1, 1, 1]


def test_a_prompt_has_the_same_embedding_to_the_bit_in_whatever_company():
    texts = load_clip(make_clip()), load_clip(make_clip())
    among_others, _ = texts[0].embed_texts(["red cat", *(f"a dog, {number}" for number in range(7))])
    alone, _ = texts[1].embed_texts(["red cat"])
    assert torch.equal(among_others[0], alone[0])


def test_text_cache_forgets_the_least_recently_used(monkeypatch):
    monkeypatch.setattr(clip_model, "NUM_CACHED_PROMPTS", 2)
    clip = load_clip(make_clip())
    for prompts in (["a"], ["b"], ["a"], ["c"]):
        clip.embed_texts(prompts)
    assert list(clip._texts) == ["a", "c"]
    embeds, _ = clip.embed_texts(["d", "e", "f"])  # more than it holds
    assert embeds.shape[0] == 3 and len(clip._texts) == 2


def test_batch_equals_singles(clip, images):
    together = clip.trace(images, PROMPTS, EVERYTHING)
    for index, prompt in enumerate(PROMPTS):
        alone = clip.trace(images[index : index + 1], [prompt], EVERYTHING)
        for name, value in leaves(alone).items():
            other = leaves(together)[name][index : index + 1]
            # fp32 sums in another order
            assert (value - other).abs().max() <= 2e-5 * other.abs().max(), name


def test_eight_threads_equal_one(images):
    clip = load_clip(make_clip())
    prompts = [[f"{letter} cat", f"{letter} dog", ""] for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda batch: clip.trace(images, batch, EVERYTHING), prompts))
    for batch, trace in zip(prompts, threaded):
        assert_same(trace, clip.trace(images, batch, EVERYTHING), 2e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_outer_mode_changes_nothing(clip, folder, images, mode):
    expected = clip.trace(images, PROMPTS, EVERYTHING)
    with mode():
        assert_same(clip.trace(images.clone(), PROMPTS, EVERYTHING), expected, 0)
        fresh = load_clip(folder)
    assert_same(fresh.trace(images, PROMPTS, EVERYTHING), expected, 1e-6)


def test_nothing_is_left_behind_even_after_an_error(monkeypatch, pair, images):
    model, tokenizer = pair
    assert all(parameter.requires_grad for parameter in model.parameters())
    clip, images = load_clip(pair), images.clone().requires_grad_()
    trace = clip.trace(images, PROMPTS, EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clip.trace(images, PROMPTS, EVERYTHING)
    assert images.grad is None and images.requires_grad and images.is_leaf
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module._backward_hooks or module._backward_pre_hooks for module in model.modules())
    assert not any(value.requires_grad for value in leaves(trace).values())
    assert not clip.embed_texts(PROMPTS)[0].requires_grad


def test_no_graph_survives_the_trace(monkeypatch, clip, images):
    embeds = []

    def run(*arguments, original=VitTower.run):
        record = original(*arguments)
        embeds.append(weakref.ref(record.embeds))
        return record

    monkeypatch.setattr(VitTower, "run", run)
    trace = clip.trace(images, PROMPTS, EVERYTHING)
    assert len(embeds) == 1 and embeds[0]() is None and trace.logits.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-5), ("float16", 2**-8)])
def test_half_tower_has_fp32_results_close_to_the_fp32_ones(clip, images, dtype, tolerance):
    # eight (eleven) bits of mantissa, and a few tens of roundings on the way
    half = load_clip(make_clip(), dtype=dtype).trace(images, PROMPTS, EVERYTHING)
    assert all(value.dtype == torch.float32 for value in leaves(half).values())
    for name, value in leaves(clip.trace(images, PROMPTS, EVERYTHING)).items():
        assert (value - leaves(half)[name]).norm() < 2 * tolerance * value.norm(), name


def test_tiny_gradients_survive_fp16(images):
    model, tokenizer = make_clip()
    model.logit_scale.data.fill_(0.0)  # a logit is a cosine
    model.vision_model.pre_layrnorm.weight.data *= 2000  # of a residual stream that no block can turn far
    request = Request(features=frozenset({2}))
    exact, half = (
        load_clip((model, tokenizer), dtype=dtype).trace(images, PROMPTS, request).features[2].gradient
        for dtype in ("float32", "float16")
    )
    assert exact.abs().median() < 1e-6  # fp16's smallest number is 6e-8
    assert (exact - half).norm() < 0.01 * exact.norm()  # the weights' own rounding; without a scale 0.023


def test_clip_model_is_what_load_gives(clip):
    assert isinstance(clip, ClipModel) and clip.tower.grid == (4, 4) and clip.tower.num_blocks == 3


def test_loaded_model_in_two_dtypes_leaves_the_first_as_it_was(images):
    model, tokenizer = make_clip()
    first = load_clip((model, tokenizer))
    before = first.trace(images, PROMPTS).logits
    half = load_clip((model, tokenizer), dtype="bfloat16")
    assert half.tower.dtype == torch.bfloat16 and first.tower.dtype == torch.float32
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert torch.equal(first.trace(images, PROMPTS).logits, before)
    assert load_clip((model, tokenizer), dtype="bfloat16") is half
