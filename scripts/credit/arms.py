"""The arms of a measurement. Each is a way to spread the advantages of the same rollouts over tokens."""

from collections.abc import Iterable
from dataclasses import replace

from flow_grpo.training.credit import CreditRule

REFERENCE = "scalar"
ALPHA = 0.5  # of the controls
CONTROLS = ("rolled", "shuffled", "inverted")  # a constant map is the reference


def arms(rule: CreditRule, map_kinds: Iterable[str]) -> dict[str, CreditRule]:
    """{label: rule}; the first is the reference, Flow-GRPO's advantage. The rest of `rule` stays as the run has it.

    map_kinds: of the run's maps; residuals need all of them to be "reward".
    """
    plain = replace(rule, mode="weight", evidence="own", control="none")
    rules = {REFERENCE: replace(plain, mode="scalar")}
    for evidence in ("own", "group"):
        for alpha in (0.25, 0.5, 1.0):
            rules[f"{evidence}, alpha {alpha:g}"] = replace(plain, evidence=evidence, alpha=alpha)
    if set(map_kinds) == {"reward"}:
        for alpha in (0.5, 1.0):
            rules[f"residual, lam {alpha:g}"] = replace(plain, mode="residual", alpha=alpha)
    controlled = {label: real for label, real in rules.items() if label != REFERENCE and real.alpha == ALPHA}
    for label, real in controlled.items():
        rules |= {f"{control}, {label}": replace(real, control=control) for control in CONTROLS}
    return rules
