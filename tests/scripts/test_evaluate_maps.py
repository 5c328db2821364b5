"""What a map is scored by: worked by hand, against references, and at the values that a map without content must have."""

import json
import sys

import pytest
import torch
from evaluate_maps import (
    CONTROLS,
    FRACTIONS,
    MAPS,
    METRICS,
    auroc,
    deletion_and_insertion,
    energy_in_mask,
    main,
    markdown_table,
    pair_queries,
    pointing_game,
    scored_maps,
    selection,
)

from flow_grpo.clip.load import load_clip

PLAIN = ("clip_attention:plain", "clip_attention:plain-rollout")  # the image tower alone, the prompt unread


def maps_of(*rows):
    return torch.tensor(rows, dtype=torch.float32)[:, None]  # (N, 1, W)


def masks_of(*rows):
    return torch.tensor(rows, dtype=torch.bool)[:, None]


# The metrics


def test_pointing_game_asks_where_the_largest_value_lies_and_shares_ties():
    maps = maps_of([1, 9, 2, 3], [1, 2, 9, 3], [9, 9, 9, 1], [0, 0, 0, 0])
    masks = masks_of(*[[1, 1, 0, 0]] * 4)
    assert pointing_game(maps, masks).tolist() == pytest.approx([1, 0, 2 / 3, 0.5])


def test_energy_is_the_masks_share_of_the_sum():
    maps = maps_of([1, 2, 3, 4], [0, 0, 0, 0])
    assert energy_in_mask(maps, masks_of(*[[0, 1, 0, 1]] * 2)).tolist() == pytest.approx([0.6, 0])


def test_auroc_is_the_share_of_pairs_in_order_with_ties_as_half():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 5, (6, 4, 5), generator=generator).float()  # few levels: many ties
    masks = torch.rand(6, 4, 5, generator=generator) < 0.3
    for reward_map, mask, got in zip(maps, masks, auroc(maps, masks)):
        inside, outside = reward_map[mask][:, None], reward_map[~mask][None]
        expected = (inside > outside).double().mean() + 0.5 * (inside == outside).double().mean()
        assert got.item() == pytest.approx(expected.item(), abs=1e-12)


def test_auroc_of_the_mask_itself_is_one_of_its_opposite_zero_of_a_constant_half():
    masks = masks_of([1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1])
    maps = maps_of([1, 0, 0, 1], [0, 1, 1, 0], [3, 3, 3, 3])
    assert auroc(maps, masks).tolist() == [1, 0, 0.5]


def test_selection_compares_means_not_sums_and_a_tie_is_half():
    maps = maps_of([4, 1, 1, 1, 1, 1], [4, 5, 5, 5, 5, 5], [2, 2, 2, 2, 2, 2])
    asked, other = masks_of(*[[1, 0, 0, 0, 0, 0]] * 3), masks_of(*[[0, 1, 1, 1, 1, 1]] * 3)
    assert selection(maps, asked, other).tolist() == [1, 0, 0.5]


def test_deletion_and_insertion_of_a_score_that_counts_one_region():
    """The score is the region's mean: what is deleted of the region is missing from it in proportion."""
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[:, :4, :4] = True  # a quarter of the pixels
    images = region[:, None].float().repeat(1, 3, 1, 1)

    def score(batch, prompts):
        return batch[:, :, :4, :4].mean(dim=(1, 2, 3))

    perfect = deletion_and_insertion(region.float(), images, ["a corner"], score)
    worst = deletion_and_insertion(1 - region.float(), images, ["a corner"], score)
    # The score kept falls from 1 to 0 over the first quarter; inserting from the highest on, it rises over that quarter.
    assert perfect == pytest.approx((0.125, 0.875))
    # The worst map touches the region in its last quarter only, which lies within the last interval, from 1/2 to 1.
    assert worst == pytest.approx((0.5 + 0.25, 0.25))
    assert FRACTIONS == (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


# The queries and the controls


def test_each_pair_is_asked_for_both_of_its_shapes():
    images, prompts, asked, other = pair_queries(6)
    assert len(images) == len(prompts) == len(asked) == len(other) == 12
    assert torch.equal(images[::2], images[1::2]) and 0 <= images.min() < images.max() <= 1
    assert torch.equal(asked[::2], other[1::2]) and torch.equal(asked[1::2], other[::2])
    assert all(prompt.startswith("a ") and len(prompt.split()) == 3 for prompt in prompts)
    assert all(one != two for one, two in zip(prompts[::2], prompts[1::2]))


def test_random_maps_are_at_chance_by_every_metric():
    images, prompts, asked, other = pair_queries(100)
    maps = torch.rand(20, *asked.shape, generator=torch.Generator().manual_seed(0))  # 4000 draws in all
    asked, other = (masks.repeat(20, 1, 1) for masks in (asked, other))
    maps, area = maps.flatten(0, 1), asked.float().mean().item()
    # three standard errors of 4000 draws
    assert pointing_game(maps, asked).mean().item() == pytest.approx(area, abs=3 * (area / 4000) ** 0.5)
    assert selection(maps, asked, other).mean().item() == pytest.approx(0.5, abs=3 * (0.25 / 4000) ** 0.5)
    assert energy_in_mask(maps, asked).mean().item() == pytest.approx(area, abs=0.001)
    assert auroc(maps, asked).mean().item() == pytest.approx(0.5, abs=0.002)


def test_the_random_control_points_at_a_shape_less_than_once_in_ten_and_is_the_same_every_time():
    images, prompts, asked, _ = pair_queries(200)
    maps = CONTROLS["random"](images, prompts)
    assert pointing_game(maps, asked).mean() < 0.10
    assert torch.equal(maps, CONTROLS["random"](images, prompts))


@pytest.mark.parametrize("name", ["centre", "edges"])
def test_a_control_without_the_prompt_selects_at_chance_exactly(name):
    """One map for both queries of an image: what it wins on the one it loses on the other."""
    images, prompts, asked, other = pair_queries(50)
    assert selection(CONTROLS[name](images, prompts), asked, other).mean().item() == 0.5


def test_edges_lie_on_shapes_the_centre_less_so_and_noise_by_area_alone():
    images, prompts, asked, other = pair_queries(50)
    either = asked | other
    energy = {name: energy_in_mask(fn(images, prompts), either).mean() for name, fn in CONTROLS.items()}
    assert energy["edges"] > 1.5 * energy["centre"] > 1.5 * energy["random"]


# The maps, on tiny-clip and pairs that it was not trained on


@pytest.fixture(scope="module")
def queries():
    return pair_queries(100)


@pytest.fixture(scope="module")
def maps(queries):
    clip = load_clip("models/tiny-clip")
    return {label: scored_maps(label, clip, *queries[:2]) for label in MAPS}


def pointing_and_selection(maps, queries):
    _, _, asked, other = queries
    return pointing_game(maps, asked).mean().item(), selection(maps, asked, other).mean().item()


def test_gradcam_points_at_the_shape_that_is_asked_for(maps, queries):
    pointing, selected = pointing_and_selection(maps["clip_gradcam"], queries)
    assert pointing >= 0.70 and selected >= 0.80


def test_the_best_map_hardly_ever_takes_one_shape_for_the_other(maps, queries):
    pointing, selected = pointing_and_selection(maps["clip_decomposition"], queries)
    assert pointing >= 0.85 and selected >= 0.95


@pytest.mark.parametrize("label", [label for label in MAPS if label not in PLAIN])
def test_two_prompts_for_one_image_move_every_map_of_the_score(maps, label):
    moved = (maps[label][::2] - maps[label][1::2]).abs().mean()
    assert moved > 0.02


@pytest.mark.parametrize("label", PLAIN)
def test_plain_attention_does_not_know_the_prompt_and_selects_at_chance_exactly(maps, queries, label):
    # rounding alone, by an image's place in the batch
    torch.testing.assert_close(maps[label][::2], maps[label][1::2], atol=1e-5, rtol=0)
    assert pointing_and_selection(maps[label], queries)[1] == 0.5


# The command


def test_the_table_has_a_row_a_map_and_a_column_a_metric():
    lines = markdown_table({"random": dict.fromkeys(METRICS, 0.5)}).splitlines()
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| random |" + " 0.500 |" * len(METRICS)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--maps", "clip_gradcam,", "edgs"], "--maps does not know edgs; it knows centre"),
        (["--num-scenes", "-2"], "must be a whole number above 0, got -2"),
        (["--json", "nowhere/maps.json"], "there is no folder nowhere; make it first"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate_maps.py", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert says in capsys.readouterr().err


def test_the_command_prints_a_table_and_writes_the_same_figures(tmp_path, monkeypatch, capsys):
    path = tmp_path / "maps.json"
    command = f"evaluate_maps.py --num-scenes 3 --maps clip_gradcam edges --json {path}"
    monkeypatch.setattr(sys, "argv", command.split())
    main()
    results = json.loads(path.read_text(encoding="utf-8"))
    assert list(results) == ["clip_gradcam", "edges"] and all(list(row) == list(METRICS) for row in results.values())
    assert markdown_table(results) in capsys.readouterr().out
