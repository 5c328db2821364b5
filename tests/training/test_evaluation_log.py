from flow_grpo.training.evaluation_log import log_evaluation


def values(reward, gold, density):
    around = [-0.02, -0.01, 0.0, 0.01, 0.02]
    means = {"reward": reward, "gold/ocr": gold, "gold/ocr/exact": gold, "signal/edge_density": density}
    return {name: [mean + each for each in around] for name, mean in means.items()}


def test_what_is_watched_rings_and_what_is_not_does_not(tmp_path):
    assert log_evaluation(tmp_path, 0, values(0.4, 0.6, 0.3)) == ({}, [])
    metrics, ringing = log_evaluation(tmp_path, 5, values(0.8, 0.3, 0.3))
    # a detail of a gold reward is not watched by itself
    assert metrics == {"alarm/gold/ocr": 1.0, "alarm/signal/edge_density": 0.0}
    assert [(alarm.measure, alarm.since) for alarm in ringing] == [("gold/ocr", 0)]


def test_a_resumed_run_is_held_against_the_evaluations_before_it(tmp_path):
    log_evaluation(tmp_path, 0, values(0.4, 0.6, 0.3))
    log_evaluation(tmp_path, 5, values(0.5, 0.7, 0.3))
    _, (alarm,) = log_evaluation(tmp_path, 10, values(0.9, 0.6, 0.3))
    assert alarm.since == 5


def test_a_gold_reward_behind_a_server_is_watched_too(tmp_path):
    def named(means):
        return {name.replace("gold/ocr", "gold/remote:http://10.0.0.5:8000"): each for name, each in means.items()}

    log_evaluation(tmp_path, 0, named(values(0.4, 0.6, 0.3)))
    metrics, _ = log_evaluation(tmp_path, 5, named(values(0.8, 0.3, 0.3)))
    assert metrics == {"alarm/gold/remote:http://10.0.0.5:8000": 1.0, "alarm/signal/edge_density": 0.0}
