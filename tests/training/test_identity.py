"""A run's model and prompts by their content."""

import torch

from flow_grpo.training.identity import prompts_identity, weights_identity


def test_prompts_are_known_by_their_texts_order_and_metadata():
    train, held_out = (["a", "b"], [{}, {}]), (["c"], [{"targets": ["X"]}])
    same = prompts_identity(train, held_out)
    assert same == prompts_identity((["a", "b"], [{}, {}]), (["c"], [{"targets": ["X"]}]))
    others = [
        prompts_identity((["b", "a"], [{}, {}]), held_out),
        prompts_identity((["a", "b", "d"], [{}, {}, {}]), held_out),
        prompts_identity(train, (["c"], [{"targets": ["Y"]}])),
        prompts_identity((["a"], [{}]), (["b", "c"], [{}, {}])),
    ]
    assert len({same, *others}) == 5


def test_weights_are_known_by_their_names_shapes_types_and_values():
    torch.manual_seed(0)
    weights = {"a": torch.randn(100, 200), "b": torch.randn(3).to(torch.bfloat16), "c": torch.tensor(1.0)}
    same = weights_identity(weights.items())
    assert same == weights_identity((name, tensor.clone()) for name, tensor in reversed(weights.items()))
    others = [
        weights | {"a": weights["a"] + 1e-3},
        weights | {"a": weights["a"].T},
        weights | {"b": weights["b"].float()},
        {"A" if name == "a" else name: tensor for name, tensor in weights.items()},
    ]
    assert len({same, *(weights_identity(other.items()) for other in others)}) == 5


def test_a_policy_is_known_before_and_after_its_lora_was_trained_and_from_another_folder(policy, make_policy, tmp_path):
    identity = weights_identity(policy.loaded_weights())
    other = make_policy()
    with torch.no_grad():
        for parameter in other.trainable_parameters():
            parameter.add_(1)
    assert weights_identity(other.loaded_weights()) == identity
    with torch.no_grad():
        dict(other.loaded_weights())["vae.decoder.layers.0.weight"].add_(1e-3)
    assert weights_identity(other.loaded_weights()) != identity
