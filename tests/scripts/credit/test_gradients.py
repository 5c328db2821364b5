"""Gradients of many arms at once, held against the trainer's own loss."""

import pytest
import torch

from flow_grpo.training.objective import grpo_loss
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, replay, rollout
from scripts.credit.gradients import MAX_KEPT, arm_gradients, gradient_sketch, spanning_rows

PROMPTS = ['a red circle and a blue sign "HUT"', 'a green star and a black sign "SOB"']


def test_spanning_rows_make_up_all_rows_and_leave_out_what_others_make_up():
    base = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    half = (base[0] + base[1]) / 2
    rows = torch.stack([base[0], torch.zeros(40).double(), base[1], half, base[2], -2 * half])
    spanning, shares = spanning_rows(rows)
    assert torch.equal(spanning, base)
    torch.testing.assert_close(shares @ spanning, rows)
    assert spanning_rows(torch.zeros(2, 5).double())[0].shape == (0, 5)


def test_arms_have_the_gradients_of_the_trainers_loss():
    policy = load_policy(
        *("sd3", "models/tiny-sd3", "no"),
        **{"resolution": 64, "lora_rank": 2, "lora_alpha": 4, "guidance_scale": 1.0, "max_sequence_length": 34},
    )
    sde = SDE(3, 0.7)
    batches = [rollout(policy, [prompt] * 2, [2 * g, 2 * g + 1], sde, 2) for g, prompt in enumerate(PROMPTS)]
    advantages = torch.randn(2, 2, 4, 64, generator=torch.Generator().manual_seed(0))
    advantages = torch.cat([advantages, advantages[:1] / 2 + advantages[1:] / 2])  # three arms, of two the mean
    gradients = arm_gradients(policy, batches, advantages, 2, sde)
    for arm in range(3):
        for group, batch in enumerate(batches):
            log_prob = replay(policy, batch, 1, sde).log_prob
            earned = advantages[arm, 1, 2 * group : 2 * group + 2]
            loss, _ = grpo_loss(log_prob, batch.log_probs[:, 1], earned, 1e-3, "gspo_token")
            parts = torch.autograd.grad(loss, policy.trainable_parameters())
            expected = -gradient_sketch(sum(p.numel() for p in parts), policy.device)(
                torch.cat([p.flatten() for p in parts])
            )
            # sums in another order, and the third arm is put together from the other two
            torch.testing.assert_close(
                gradients[arm, group, 1], expected, rtol=1e-3, atol=1e-5 * float(expected.norm())
            )


def test_a_short_gradient_is_kept_and_a_long_one_keeps_its_angles():
    short = torch.randn(7)
    assert gradient_sketch(7, torch.device("cpu"))(short) is short
    generator = torch.Generator().manual_seed(0)
    one, noise = torch.randn(2, 3 * MAX_KEPT, generator=generator)
    other = 0.6 * one + 0.8 * noise
    sketch = gradient_sketch(len(one), torch.device("cpu"))
    angle = torch.nn.functional.cosine_similarity
    assert len(sketch(one)) == MAX_KEPT
    # five standard deviations of a count sketch, 1 / sqrt(K) each
    assert float(angle(sketch(one), sketch(other), dim=0)) == pytest.approx(float(angle(one, other, dim=0)), abs=0.01)
