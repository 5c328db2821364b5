from flow_grpo.training.report.charts import MAX_LINES, charts, compared

ROWS = [
    {"epoch": 0, "eval/reward": 0.5, "eval/gold/other": 0.4},
    {"epoch": 0, "rollout/reward_mean": 0.4, "rollout/reward_std": 0.1, "time/update_seconds": 2.0},
    {"epoch": 1, "rollout/reward_mean": 0.6, "rollout/reward_std": 0.2, "time/update_seconds": 3.0},
]


def test_the_rollouts_reward_has_its_deviation_as_spread():
    reward = charts(ROWS)[0]
    rollout = next(line for line in reward.lines if line.label == "rollout/reward_mean")
    assert rollout.x == [0.5, 1.5] and rollout.y == [0.4, 0.6]
    assert rollout.low == [0.4 - 0.1, 0.6 - 0.2] and rollout.high == [0.4 + 0.1, 0.6 + 0.2]
    assert next(line for line in reward.lines if line.label == "eval/reward").low == []


def test_a_metric_stands_in_one_chart_and_empty_charts_are_left_out():
    labels = [line.label for chart in charts(ROWS) for line in chart.lines]
    assert sorted(labels) == sorted(set(labels)) and "rollout/reward_std" not in labels
    assert [chart.title for chart in charts(ROWS)] == ["Reward", "Watched, not trained on", "Seconds by stage"]


def test_a_chart_with_too_many_lines_is_split():
    rows = [{"epoch": 0, **{f"time/{i}_seconds": float(i) for i in range(MAX_LINES + 1)}}]
    assert [len(chart.lines) for chart in charts(rows)] == [MAX_LINES, 1]


def test_seeds_of_one_run_become_a_mean_with_its_spread():
    runs = {f"ocr seed {i}": [{"epoch": 0, "eval/reward": value}] for i, value in enumerate((0.2, 0.6))}
    runs["maps"] = [{"epoch": 0, "eval/reward": 0.9}]
    (chart,) = compared(runs, ["eval/reward", "never/logged"])
    assert [(line.label, line.y, line.low, line.high) for line in chart.lines] == [
        ("ocr (2 seeds)", [0.4], [0.2], [0.6]),
        ("maps", [0.9], [], []),
    ]


def test_a_value_that_is_no_number_leaves_a_gap():
    rows = [{"epoch": 0, "eval/reward": float("nan")}, {"epoch": 1, "eval/reward": 0.5}]
    assert charts(rows)[0].lines[0].x == [1]
