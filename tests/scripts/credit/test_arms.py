"""Which ways of spreading credit a measurement compares."""

from flow_grpo.training.credit import CreditRule
from scripts.credit.arms import ALPHA, CONTROLS, REFERENCE, arms

RULE = CreditRule("global", "sum", "residual", "own", "none", alpha=1.0, fade=0.0, w_max=8.0, clip_max=5.0)


def test_every_way_to_use_a_map_stands_beside_its_own_controls():
    rules = arms(RULE, ["reward"])
    assert next(iter(rules)) == REFERENCE and rules[REFERENCE].mode == "scalar"
    ways = {(rule.mode, rule.evidence) for rule in rules.values() if rule.mode != "scalar"}
    assert ways == {("weight", "own"), ("weight", "group"), ("residual", "own")}
    for control in ("none", *CONTROLS):
        of_control = [rule for rule in rules.values() if (rule.control, rule.alpha) == (control, ALPHA)]
        assert {(rule.mode, rule.evidence) for rule in of_control} == ways


def test_importance_maps_have_no_residuals():
    assert {rule.mode for rule in arms(RULE, ["reward", "importance"]).values()} == {"scalar", "weight"}
