"""Pretraining in miniature: the tokenizer, the facts of a caption, and stages that go on bit for bit."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from scripts.pretrain.signs_world import COLORS, SHAPES, SIZE, make_scene, words
from scripts.pretrain.stage import fit
from scripts.pretrain.tiny_sd3 import CLIP_LENGTH, T5_LENGTH, make_clip_tokenizer, make_pipeline, make_t5_tokenizer
from scripts.pretrain.tiny_sd3_training import (
    FACT_SIZES,
    KINDS,
    NUM_TOKEN_FACTS,
    Conditions,
    autoencoder_stage,
    encode_captions,
    encode_images,
    pretrain_sd3,
    render_scenes,
    scene_facts,
    set_latent_scale,
    text_stage,
    transformer_stage,
    word_weight,
)

SEEDS = range(40)


@pytest.fixture(scope="module")
def tokenizer():
    return make_clip_tokenizer()


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(8, seed=0)


def test_the_places_of_the_trained_size_are_those_of_a_table_that_ends_there():
    tiny = make_pipeline().transformer
    own = SD3Transformer2DModel.from_config(dict(tiny.config) | {"pos_embed_max_size": SIZE // 8})
    expected, latents = own.pos_embed.cropped_pos_embed(16, 16), SIZE // 4
    assert torch.equal(tiny.pos_embed.cropped_pos_embed(latents, latents), expected)
    wide = tiny.pos_embed.cropped_pos_embed(latents, 2 * latents).reshape(8, 16, -1)  # twice as many columns
    assert torch.equal(wide[:, 4:12].reshape(expected.shape), expected)
    assert len(wide[0].unique(dim=0)) == 16


# The tokenizers


@pytest.mark.parametrize("word", [*COLORS, *SHAPES, "a", "and", "sign", ","])
def test_every_word_of_a_caption_is_one_clip_token(tokenizer, word):
    assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_the_letters_of_a_sign_are_spelled_but_for_one_pair(tokenizer):
    for word in (*words("train"), *words("test")):
        tokens = [token.removesuffix("</w>") for token in tokenizer.tokenize(f'sign "{word}"')[2:-1]]
        # BPE merges the first letters of "red" wherever they stand
        assert "".join(tokens) == word.lower() and (tokens == list(word.lower()) or word.startswith("RE")), word


def test_no_token_of_a_caption_is_unknown_and_none_is_cut_off(tokenizer):
    for split in ("train", "test"):
        for seed in SEEDS:
            caption = make_scene(seed, split).caption
            ids = tokenizer(caption).input_ids
            assert len(ids) <= CLIP_LENGTH
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == caption.lower().replace(" ", "")


def test_different_captions_have_different_tokens(tokenizer):
    captions = {make_scene(seed).caption for seed in SEEDS}
    assert len({tuple(tokenizer(caption).input_ids) for caption in captions}) == len(captions)


def test_the_t5_reads_words_and_single_letters_and_all_of_a_caption():
    tokenizer = make_t5_tokenizer()
    for split in ("train", "test"):
        for seed in SEEDS:
            caption = make_scene(seed, split).caption
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(caption).input_ids)
            assert len(tokens) <= T5_LENGTH and tokens[-1] == "</s>" and "<unk>" not in tokens
            assert "".join(tokens[:-1]) == caption.replace(" ", "")
            assert all(token.islower() or len(token) == 1 for token in tokens[:-1])


# The facts of a caption


def test_facts_name_whose_each_colour_is_and_the_shapes_kind():
    for seed in SEEDS:
        scene = make_scene(seed)
        *roles, kind = scene_facts(scene)[0]
        assert len([*roles, kind]) == len(FACT_SIZES)
        shape, *signs = (thing.name.split() for thing in scene.objects)
        named = {color: role for color, role in zip(COLORS, roles) if role}
        assert named == {shape[0]: 1} | {color: 2 for color, _ in signs} and SHAPES[kind] == shape[1]


def test_each_token_has_its_kind_or_letter_and_the_colour_of_its_object():
    tokenizer = make_t5_tokenizer()
    for seed in SEEDS:
        scene = make_scene(seed)
        _, token_facts, token_colors = scene_facts(scene)
        assert len(token_facts) == len(token_colors) == T5_LENGTH and max(token_facts) < NUM_TOKEN_FACTS
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(scene.caption).input_ids)
        told = [(token, fact, color) for token, fact, color in zip(tokens, token_facts, token_colors)]
        kinds = [(KINDS[fact - 1], list(COLORS)[color - 1]) for token, fact, color in told if token in KINDS]
        assert kinds == [tuple(thing.name.split()[::-1]) for thing in scene.objects]
        letters = [
            (token, *divmod(fact - 1 - len(KINDS), 26), list(COLORS)[color - 1])
            for token, fact, color in told
            if token.isupper()
        ]
        assert letters == [
            (letter, place, ord(letter) - ord("A"), sign.name.split()[0])
            for sign in scene.signs
            for place, letter in enumerate(sign.word)
        ]
        assert all(fact == 0 for token, fact, _ in told if token not in KINDS and not token.isupper())


def test_words_weigh_more_where_they_stand_and_the_mean_is_one():
    for seed in SEEDS:
        scene = make_scene(seed)
        weight = word_weight(scene)
        assert weight.shape == (1, SIZE // 4, SIZE // 4) and weight.mean().item() == pytest.approx(1, abs=1e-6)
        heavy = np.repeat(np.repeat((weight[0] > weight.min()).numpy(), 4, 0), 4, 1)
        for left, top, right, bottom in (sign.text_box for sign in scene.signs):
            assert heavy[top:bottom, left:right].all()
        assert not heavy[~np.any([sign.mask for sign in scene.signs], axis=0)].mean() > 0.1


def test_weathered_scenes_are_the_same_scenes_with_other_letters(scenes):
    weathered = render_scenes(len(scenes.captions), seed=0, worn_share=0.25, wrong_share=0.2)
    assert weathered.captions == scenes.captions and torch.equal(weathered.facts, scenes.facts)
    changed = (weathered.images != scenes.images).flatten(1).any(1)
    assert 0 < changed.sum() < len(changed)


def test_scenes_are_images_in_the_autoencoders_range(scenes):
    assert scenes.images.shape == (8, 3, SIZE, SIZE)
    assert -1 <= scenes.images.min() < 0 < scenes.images.max() <= 1
    expected = torch.from_numpy(make_scene(0).image.copy()).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(scenes.images[0], expected)


def test_scenes_with_signs_anywhere_have_the_same_captions(scenes):
    """So the embeddings of the captions serve both layouts."""
    anywhere = render_scenes(len(scenes.captions), seed=0, anywhere=True)
    assert anywhere.captions == scenes.captions and torch.equal(anywhere.token_facts, scenes.token_facts)
    assert (anywhere.images != scenes.images).flatten(1).any(1).all()


# The stages


STAGES = {
    "text": lambda pipeline, scenes: text_stage(pipeline, scenes, 2, "cpu"),
    "autoencoder": lambda pipeline, scenes: autoencoder_stage(pipeline, scenes, 2, "cpu"),
    "transformer": lambda pipeline, scenes: transformer_stage("transformer", *flow_of(pipeline, scenes), 2, "cpu"),
    "weathering": lambda pipeline, scenes: transformer_stage("weathering", *flow_of(pipeline, scenes), 2, "cpu"),
}


def flow_of(pipeline, scenes):
    set_latent_scale(pipeline.vae, scenes.images, "cpu")
    captions, nothing = (encode_captions(pipeline, texts, "cpu") for texts in (scenes.captions, [""]))
    return pipeline, pipeline.transformer, scenes, Conditions(captions, nothing)


def fresh_stage(name, scenes):
    torch.manual_seed(0)
    return STAGES[name](make_pipeline(), scenes)


@pytest.mark.parametrize("name", STAGES)
def test_an_interrupted_stage_goes_on_bit_for_bit(name, scenes, tmp_path):
    whole = fresh_stage(name, scenes)
    initial = {key: tensor.clone() for key, tensor in whole.modules.state_dict().items()}
    (tmp_path / "whole").mkdir(), (tmp_path / "run").mkdir()
    fit(whole, tmp_path / "whole", seed=5, save_every=1)

    interrupted, num_calls = fresh_stage(name, scenes), 0
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
    resumed = fresh_stage(name, scenes)
    fit(resumed, tmp_path / "run", seed=5, save_every=1)

    expected, got = whole.modules.state_dict(), resumed.modules.state_dict()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert not all(torch.equal(initial[key], expected[key]) for key in expected)
    assert not any(parameter.requires_grad for parameter in resumed.modules.parameters())


def test_the_flow_goes_on_with_other_scenes_from_its_own_checkpoint(scenes, tmp_path):
    """Two stages of one name: the second takes the step, the weights and the optimizer of the first."""
    torch.manual_seed(0)
    flow = flow_of(make_pipeline(), scenes)
    fit(transformer_stage("transformer", *flow, 1, "cpu"), tmp_path, seed=0)
    stage, seeds = transformer_stage("transformer", *flow, 3, "cpu"), []
    loss = stage.loss
    stage.loss = lambda generator: seeds.append(generator.initial_seed()) or loss(generator)
    fit(stage, tmp_path, seed=0)
    assert seeds == [1, 2]
    state = torch.load(tmp_path / "transformer.pt", weights_only=True)
    assert state["step"] == 3 and {int(one["step"]) for one in state["optimizer"]["state"].values()} == {3}


def test_latents_have_unit_scale_and_the_config_gives_them_back(scenes):
    torch.manual_seed(0)
    vae = make_pipeline().vae
    set_latent_scale(vae, scenes.images, "cpu")
    latents = encode_images(vae, scenes.images, "cpu")
    assert latents.shape == (8, 8, SIZE // 4, SIZE // 4)
    assert latents.std().item() == pytest.approx(1, abs=1e-4) and latents.mean().item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        raw = vae.encode(scenes.images).latents.float()
    restored = latents / vae.config.scaling_factor + vae.config.shift_factor  # as the pipeline does before decoding
    torch.testing.assert_close(restored, raw, atol=1e-4, rtol=1e-4)


def test_the_whole_command_writes_a_pipeline_that_loads(tmp_path):
    args = Namespace(
        out=tmp_path / "model",
        work_dir=tmp_path / "work",
        device="cpu",
        seed=0,
        num_scenes=8,
        text_steps=1,
        autoencoder_steps=1,
        anywhere_steps=1,
        transformer_steps=2,
        weathering_steps=1,
        compile=False,
    )
    pretrain_sd3(args)
    assert torch.load(args.work_dir / "transformer.pt", weights_only=True)["step"] == 2, "one anywhere, one on slots"
    assert {path.name for path in args.work_dir.iterdir()} == {
        *("text.pt", "autoencoder.pt", "transformer.pt", "weathering.pt"),
        "samples.png",
    }
    loaded = StableDiffusion3Pipeline.from_pretrained(args.out)
    assert next(loaded.transformer.parameters()).dtype == torch.float32
    trained = torch.load(args.work_dir / "text.pt", weights_only=True)["modules"]
    for name, tensor in loaded.text_encoder_3.state_dict().items():
        assert torch.equal(tensor, trained[f"t5.{name}"]), name
    assert loaded.vae.config.scaling_factor != 1
    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    assert total < 25e6, "the folder is committed"
