"""Damage that is known to the pixel, and what maps that see it, or do not, are said to make of it."""

import pytest
import torch
from evaluate_maps import auroc

from flow_grpo.score import Score
from scripts.audit.damage import DAMAGES, audit, damaged_scenes
from scripts.pretrain.billboards import make_billboard
from scripts.pretrain.signs_world import HELD_OUT


def scorer_of(map_of):
    """A scorer whose maps are map_of(images), and whose reward is their mean."""

    def score(images, prompts):
        maps = map_of(images)
        return Score(maps.mean(dim=(1, 2)), maps, "reward")

    return score


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damage_changes_its_region_and_nothing_else(kind):
    scenes = damaged_scenes(kind, 6)
    changed = (scenes.whole != scenes.damaged).any(dim=1)
    assert not (changed & ~scenes.regions).any()
    assert changed.any(dim=(1, 2)).all() and (scenes.regions.float().mean(dim=(1, 2)) < 0.4).all()
    assert torch.equal(damaged_scenes(kind, 6).damaged, scenes.damaged)


def test_a_letter_is_one_of_a_word_and_a_sign_is_all_of_it():
    letters, boards_gone = damaged_scenes("letter", 6), damaged_scenes("sign", 6)
    for index in range(6):
        scene = make_billboard(HELD_OUT + index, "test")
        boards = [torch.from_numpy(sign.mask) for sign in scene.signs]
        assert sum(bool((letters.regions[index] & board).any()) for board in boards) == 1
        assert any(torch.equal(boards_gone.regions[index], board) for board in boards)
        assert letters.prompts[index] == boards_gone.prompts[index] == scene.caption


def test_a_map_that_sees_the_damage_and_nothing_else_has_all_of_it():
    scenes = damaged_scenes("sign", 5)
    sees = iter([torch.ones(scenes.regions.shape), 1 - 0.5 * scenes.regions.float()])
    figures = audit(scorer_of(lambda images: next(sees)), scenes, auroc)
    assert (figures["auroc"], figures["seen"], figures["inside"]) == (1, 1, 1) and figures["score_fall"] > 0


def test_a_map_that_is_low_where_it_counts_is_turned_around():
    scenes = damaged_scenes("sign", 5)
    sees = iter([torch.zeros(scenes.regions.shape), 0.5 * scenes.regions.float()])
    assert audit(scorer_of(lambda images: next(sees)), scenes, auroc, high_is_good=False)["inside"] == 1


@pytest.mark.parametrize("fall, inside", [(0.0, 0), (0.3, None)])
def test_a_map_that_falls_nowhere_or_everywhere_has_seen_nothing(fall, inside):
    scenes = damaged_scenes("object", 5)
    levels = iter([0.8, 0.8 - fall])
    figures = audit(scorer_of(lambda images: torch.full(scenes.regions.shape, next(levels))), scenes, auroc)
    share = float(scenes.regions.float().mean())
    assert figures["auroc"] == 0.5 and figures["seen"] == 0
    assert figures["inside"] == pytest.approx(share if inside is None else inside)


def test_a_scorer_without_a_map_cannot_be_audited():
    with pytest.raises(ValueError, match="gives no map"):
        audit(lambda images, prompts: Score(torch.zeros(len(images))), damaged_scenes("object", 1), auroc)
