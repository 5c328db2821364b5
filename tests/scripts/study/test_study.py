"""The study around its training: which runs are left, what a row holds, what the report compares, the oracle's map."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from config.validation import resolve
from scripts.pretrain.signs_world import HELD_OUT, make_scene
from scripts.study.drift import drift_of, last_lora
from scripts.study.launch import Job, curve_of, jobs_left
from scripts.study.oracle import OracleScorer, oracle_map
from scripts.study.report import best_rates, compared, drift_table, half_way, run, sweep_table, table
from scripts.study.runs import ARMS, ORACLE_ARMS, get_config

SEED = HELD_OUT + 1


def row(arm, seed, accuracies, rate=5e-4):
    curve = [[96 * i, accuracy, accuracy + 0.1] for i, accuracy in enumerate(accuracies)]
    drift = {"off_text": 3.0, "shape_right": 0.9, "gold": accuracies[-1], "base_shape_right": 1.0, "base_gold": 0.4}
    return {"arm": arm, "seed": seed, "learning_rate": rate, "curve": curve, "drift": drift}


# The arms


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_run_that_the_trainer_accepts(arm):
    config, geometry = resolve(get_config(arm), 1)
    assert geometry.num_samples == 96 and len(config.rewards) == 1


def test_arms_differ_in_their_advantage_and_the_oracles_scorer_alone():
    own = get_config("own").to_dict()
    for arm in ARMS:
        other = get_config(arm).to_dict()
        differ = {field for field in own if own[field] != other[field]}
        assert differ <= {"name", "advantage"} | ({"rewards"} if arm in ORACLE_ARMS else set())


def test_an_unknown_arm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'best'.*scalar.*oracle"):
        get_config("best")


# Going on


def test_runs_that_the_results_have_are_not_run_again():
    jobs = [Job("own", 1, 5e-4), Job("own", 2, 5e-4), Job("own", 1, 1e-3)]
    assert jobs_left(jobs, [row("own", 1, [0.4]), row("scalar", 2, [0.4])]) == jobs[1:]


def test_rates_and_seeds_find_their_row_through_json():
    job = Job("own", 1, 2e-4)
    assert not jobs_left([job], [json.loads(json.dumps(row("own", 1, [0.4], rate=job.learning_rate)))])


def test_a_curve_has_the_evaluations_by_the_images_sampled_before():
    metrics = [
        {"epoch": 0, "eval/reward": 0.5, "eval/ocr_map/exact": 0.4},
        {"epoch": 0, "rollout/reward_mean": 0.5},
        {"epoch": 2, "eval/reward": 0.7, "eval/ocr_map/exact": 0.6},
    ]
    assert curve_of(metrics, 96) == [[0, 0.4, 0.5], [192, 0.6, 0.7]]


# The report


def test_the_sweep_chooses_each_arms_rate_and_its_seed_is_not_compared():
    rows = [row("own", 0, [0.4, 0.5]), row("own", 0, [0.4, 0.7], 1e-3), row("scalar", 0, [0.4, 0.5])]
    rows += [row("own", 2, [0.4, 0.6], 1e-3), row("own", 1, [0.4, 0.8], 1e-3), row("own", 3, [0.4, 0.5])]
    assert best_rates(rows) == {"own": 1e-3, "scalar": 5e-4}
    assert {arm: [r["seed"] for r in own] for arm, own in compared(rows).items()} == {"own": [1, 2]}


def test_a_rate_that_the_sweep_alone_tried_is_told_and_not_compared():
    rows = [
        row("own", 0, [0.4, 0.5]),
        row("own", 0, [0.4, 0.8], 1e-3),
        row("own", 1, [0.4, 0.6]),
        row("oracle", 0, [0.5, 0.5]),
    ]
    assert [r["learning_rate"] for r in compared(rows)["own"]] == [5e-4]
    assert sweep_table(rows).splitlines()[2:] == ["| own | 0.450 | 0.600 |", "| oracle | 0.500 |  |"]


def test_without_a_sweep_the_rate_of_most_runs_is_taken():
    rows = [row("own", seed, [0.4, 0.6], rate) for seed, rate in ((1, 1e-3), (2, 1e-3), (3, 5e-4))]
    assert best_rates(rows) == {"own": 1e-3}


def test_an_arm_that_is_twice_as_fast_needs_half_the_samples():
    rows = [row("scalar", seed, [0.4, 0.5, 0.6]) for seed in (1, 2)] + [row("own", 1, [0.4, 0.6, 0.8])]
    arms = compared(rows)
    assert half_way(arms) == pytest.approx(0.6)
    lines = {line.split(" | ")[0].strip("| "): line for line in table(arms, level=0.5).splitlines()}
    assert lines["own"].endswith("| 48 | 2.0 |") and lines["scalar"].endswith("| 96 (96 to 96) | 1.0 (1.0 to 1.0) |")


def test_an_arm_is_compared_with_the_scalar_runs_of_its_own_seeds():
    rows = [row("scalar", 1, [0.4, 0.9, 0.9]), row("scalar", 2, [0.4, 0.5, 0.6]), row("own", 2, [0.4, 0.6, 0.8])]
    assert table(compared(rows), level=0.5).splitlines()[-1].endswith("| 0.200 | 0.600 | 48 | 2.0 |")


def test_the_oracle_sets_no_level():
    rows = [row("own", 1, [0.4, 0.8]), row("oracle", 1, [0.4, 1.0])]
    assert half_way(compared(rows)) == pytest.approx(0.6)


def test_a_run_without_drift_counts_in_the_curves_alone():
    lines = drift_table(compared([row("own", 1, [0.4, 0.5]), row("own", 2, [0.4, 0.7]) | {"drift": None}])).splitlines()
    assert lines[-1].split(" | ")[:3] == ["| own", "1", "3.0"]


def test_the_report_writes_tables_and_plots_beside_the_results(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    rows = [row(arm, seed, [0.4, 0.5 + seed / 50]) for arm in ("scalar", "own") for seed in (1, 2)]
    results.write_text("".join(json.dumps(r) + "\n" for r in rows))
    run(Namespace(results=results, level=None))
    assert (tmp_path / "tables.md").read_text() in capsys.readouterr().out
    assert {"curves.png", "drift.png"} <= {path.name for path in tmp_path.iterdir()}


def test_runs_of_two_sizes_are_not_averaged(tmp_path):
    with pytest.raises(ValueError, match="several sizes"):
        table(compared([row("own", 1, [0.4, 0.5]), row("own", 2, [0.4, 0.5, 0.6])]), 0.45)


# The oracle and the drift


def boards_of(scene):
    return np.any([sign.mask for sign in scene.signs], axis=0)


def test_the_oracles_map_is_good_on_right_signs_bad_on_worn_ones_and_neutral_elsewhere():
    for seed in range(HELD_OUT, HELD_OUT + 20):
        scene, boards = make_scene(seed), boards_of(make_scene(seed))
        right = oracle_map(scene.image, scene.caption)
        assert (right[boards] == 1).all()
        worn = oracle_map(make_scene(seed, worn_share=1.0).image, scene.caption)
        assert worn[boards].mean() < 0.2, (
            "a letter that has lost half of itself may still be the nearest to what was asked"
        )
        # a sign's slot is half a pixel larger than its board on every side
        assert (right != 0.5).sum() <= 1.2 * boards.sum() and ((worn == 0.5) == (right == 0.5)).all()


def test_the_oracles_map_is_bad_at_the_wrong_letter_alone():
    seed = next(seed for seed in range(HELD_OUT, HELD_OUT + 50) if len(make_scene(seed).signs) == 1)
    asked, drawn = make_scene(seed, words_shown=["HUT"]), make_scene(seed, words_shown=["HUB"])
    reward_map = oracle_map(drawn.image, asked.caption)
    columns = np.flatnonzero((reward_map != 0.5).any(axis=0))
    row = reward_map[drawn.signs[0].mask.nonzero()[0].min()]
    assert (row[columns[:22]] == 1).all() and (row[columns[22:]] == 0).all() and len(columns) == 32


def test_the_oracle_keeps_the_reward_of_ocr_and_changes_the_map_alone(rapidocr_engine):
    scene = make_scene(SEED)
    images = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 255
    oracle = OracleScorer(engine=rapidocr_engine)
    score, plain = oracle(images, [scene.caption]), oracle._ocr(images, [scene.caption])
    assert torch.equal(score.reward, plain.reward) and score.details.keys() == plain.details.keys()
    assert not torch.equal(score.reward_map, plain.reward_map) and score.map_kind == "reward"


def test_drift_is_that_of_the_last_checkpoint_and_not_of_the_best(tmp_path):
    for name in ("checkpoint-000002", "checkpoint-000006", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert last_lora(tmp_path) == tmp_path / "checkpoint-000006" / "lora_ema"


def test_drift_counts_pixels_off_the_signs_alone():
    scene = make_scene(SEED)
    worn = make_scene(SEED, worn_share=1.0).image
    base = scene.image[None]
    assert drift_of(worn[None], base, [scene.caption])["off_text"] == 0
    moved = scene.image.copy()
    signs = boards_of(scene)
    moved[~signs] = (moved[~signs].astype(int) + 5).clip(0, 255).astype(np.uint8)
    measured = drift_of(moved[None], base, [scene.caption])
    assert measured["off_text"] == pytest.approx(5, abs=0.1) and measured["gold"] == measured["base_gold"] == 1
