"""tiny-clip's pretraining in miniature: which captions are true, the loss that knows it, and a stage that goes on."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPModel

from scripts.pretrain.billboards import billboard_words, make_billboard
from scripts.pretrain.signs_world import make_pair
from scripts.pretrain.stage import fit
from scripts.pretrain.tiny_clip import make_clip, make_processor, make_tokenizer
from scripts.pretrain.tiny_clip_training import (
    captioned,
    contrast_stage,
    contrastive_loss,
    embed_images,
    embed_texts,
    held_out_group,
    normalise_pixels,
    part_captions,
    pretrain_clip,
    retrieval_accuracy,
    whole_caption,
)

SEEDS = range(20)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return make_clip(tokenizer).eval()


@pytest.fixture(scope="module")
def scenes():
    return captioned([make_billboard(seed) if seed % 2 else make_pair(seed) for seed in SEEDS])


# The captions


def test_the_whole_caption_claims_each_thing_and_the_word():
    scene, pair = make_billboard(1), make_pair(1)
    assert whole_caption(scene).claims == {*(thing.name for thing in scene.objects), scene.signs[0].word}
    assert whole_caption(pair).claims == {thing.name for thing in pair.objects}
    assert (whole_caption(scene).text, whole_caption(pair).text) == (scene.caption, pair.caption)


def test_parts_name_each_thing_alone_and_are_true_of_their_scene():
    for seed in SEEDS:
        for scene in (make_billboard(seed), make_pair(seed)):
            parts = part_captions(scene)
            assert [part.text for part in parts] == [f"a {thing.name}" for thing in scene.objects]
            assert all(part.claims < whole_caption(scene).claims for part in parts)


def test_the_same_things_with_another_word_are_another_claim():
    one, other = make_billboard(1, word="HUT"), make_billboard(1, word="BED")
    assert not whole_caption(one).claims <= whole_caption(other).claims


# The loss


def test_the_loss_is_clips_own_where_no_caption_is_true_of_another_image():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    own = torch.arange(4)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(scores, torch.eye(4, dtype=torch.bool)), expected)


def test_a_place_that_is_true_of_two_images_pulls_neither_way():
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    true = torch.eye(3, dtype=torch.bool)
    true[0, 1] = True
    contrastive_loss(scores, true).backward()
    assert scores.grad[0, 1] == 0
    scores.grad[0, 1] = 1  # all others count
    assert (scores.grad != 0).all()


# The towers


def test_pixels_are_what_the_models_own_processor_makes_of_them(scenes):
    processor = make_processor()
    expected = processor(list(scenes.images), return_tensors="pt").pixel_values
    # at the model's own size there is nothing to resize
    torch.testing.assert_close(normalise_pixels(scenes.images, processor), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_that_are_not_late_are_embedded_as_the_model_does_by_itself(model, scenes):
    pixels = normalise_pixels(scenes.images[:4], make_processor())
    got = embed_images(model, pixels, late=torch.zeros(4, dtype=torch.bool))
    expected = F.normalize(model.get_image_features(pixels).pooler_output, dim=1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_late_class_token_reads_the_patches_in_the_last_block_alone(model, scenes):
    pixels = normalise_pixels(scenes.images[:1], make_processor()).requires_grad_()
    class_tokens = []
    for block in model.vision_model.encoder.layers:
        block.register_forward_hook(lambda module, args, output: class_tokens.append(output[:, 0]))
    embed_images(model, pixels, late=torch.tensor([True]))
    *earlier, last = (torch.autograd.grad(token.sum(), pixels, retain_graph=True)[0] for token in class_tokens)
    assert last.any() and not any(gradient.any() for gradient in earlier)


# The stage


def test_an_interrupted_stage_goes_on_bit_for_bit(tokenizer, scenes, tmp_path):
    def fresh_stage():
        torch.manual_seed(0)
        return contrast_stage(make_clip(tokenizer), tokenizer, make_processor(), scenes, 2)

    (tmp_path / "whole").mkdir(), (tmp_path / "run").mkdir()
    whole = fresh_stage()
    fit(whole, tmp_path / "whole", seed=5, save_every=1)
    interrupted, num_calls = fresh_stage(), 0
    loss = interrupted.loss

    def stops_in_the_second_step(generator):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise KeyboardInterrupt
        return loss(generator)

    interrupted.loss = stops_in_the_second_step
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "run", seed=5, save_every=1)
    resumed = fresh_stage()
    fit(resumed, tmp_path / "run", seed=5, save_every=1)
    expected, got = whole.modules.state_dict(), resumed.modules.state_dict()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_the_whole_command_writes_a_model_that_loads(tmp_path, capsys):
    args = Namespace(out=tmp_path / "model", work_dir=tmp_path / "work", seed=0, num_scenes=8, clip_steps=1)
    pretrain_clip(args)
    assert "image to text" in capsys.readouterr().out
    loaded = CLIPModel.from_pretrained(args.out)
    trained = torch.load(args.work_dir / "clip.pt", weights_only=True)["modules"]
    assert all(torch.equal(tensor, trained[f"clip.{name}"]) for name, tensor in loaded.state_dict().items())
    caption = make_billboard(0).caption
    assert AutoTokenizer.from_pretrained(args.out)(caption).input_ids == make_tokenizer()(caption).input_ids


# The retrieval


def test_a_held_out_group_is_half_pairs_with_words_and_captions_of_its_own():
    group, other = held_out_group(0), held_out_group(1)
    assert len({scene.caption for scene in group}) == 64
    assert [bool(scene.signs) and scene.signs[0].word in billboard_words("test") for scene in group] == [
        True,
        False,
    ] * 32
    assert not {scene.image.tobytes() for scene in group} & {scene.image.tobytes() for scene in other}


def test_retrieval_among_captions_that_do_not_differ_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="two scenes have one caption"):
        retrieval_accuracy(model, tokenizer, make_processor(), [make_pair(1), make_pair(1)])


def test_retrieval_counts_who_comes_first_in_both_directions(model, tokenizer):
    scenes = held_out_group(0)[:8]
    image_to_text, text_to_image = retrieval_accuracy(model, tokenizer, make_processor(), scenes)
    pixels = normalise_pixels(captioned(scenes).images, make_processor())
    image = embed_images(model, pixels, late=torch.zeros(8, dtype=torch.bool))
    scores = image @ embed_texts(model, tokenizer, [s.caption for s in scenes]).T
    assert image_to_text == sum(int(row.argmax()) == i for i, row in enumerate(scores)) / 8
    assert text_to_image == sum(int(column.argmax()) == i for i, column in enumerate(scores.T)) / 8
