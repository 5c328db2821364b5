"""The memory table: weights counted right, and activations as autograd keeps them."""

import pytest
import torch
from diffusers import Flux2Transformer2DModel, QwenImage21Transformer2DModel
from torch.utils._pytree import tree_map_only

from flow_grpo.training.policies import flux2
from scripts.memory.kept import kept_bytes
from scripts.memory.models import MODELS, Model, flux2_inputs, qwenimage21_inputs
from scripts.memory_table import memory, needed


def small():
    return Flux2Transformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=128, joint_attention_dim=64
    )


SMALL = Model(small, flux2_inputs, flux2.LORA_TARGETS, encoders=1.0, passes=1)


def test_what_a_linear_layer_and_a_product_keep_is_what_a_hand_counts():
    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 8)

        def forward(self, x, return_dict):
            y = self.layer(x)
            return y * y.exp()

    with torch.device("meta"):
        # x for the layer's weight (3 x 4), y for the exponential's factor and the exponential itself (3 x 8 each)
        assert kept_bytes(Toy(), {"x": torch.empty(3, 4)}) == 4 * (3 * 4 + 2 * 3 * 8)


def test_a_transformer_that_asks_its_masks_keeps_on_the_meta_device_what_it_keeps_with_data():
    """Qwen-Image 2.1's own: where its text ends decides the shapes of what follows."""

    def kept_on(device):
        with torch.device(device):
            transformer = QwenImage21Transformer2DModel(
                num_layers=2, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6)
            )
        inputs = qwenimage21_inputs(transformer, batch=2, side=4, length=8)
        return kept_bytes(transformer, tree_map_only(torch.Tensor, lambda each: on(device, each), inputs))

    def on(device, tensor):
        return torch.rand(tensor.shape, device=device) if tensor.is_meta else tensor

    assert kept_on("meta") == kept_on("cpu") > 0


def test_activations_grow_with_the_batch_and_weights_do_not():
    one, two = (memory(SMALL, resolution=256, batch=batch, length=16) for batch in (1, 2))
    assert one["transformer"] == two["transformer"] and one["adapter"] == two["adapter"]
    assert two["kept"] == pytest.approx(2 * one["kept"], rel=0.05)
    assert one["checkpointed"] < one["kept"]
    assert one["total"] == sum(one[name] for name in ("transformer", "adapter", "checkpointed", "encoders"))
    assert needed(one, gradient_checkpointing=False, offload=True) == one["transformer"] + one["adapter"] + one["kept"]


@pytest.mark.parametrize(
    "name, billions",
    [("SD3.5-medium", 2.2), ("FLUX.2-klein-base-4B", 3.9), ("Z-Image", 6.2), ("Qwen-Image-2.1", 7.1)],
)
def test_the_published_configurations_have_the_published_sizes(name, billions):
    with torch.device("meta"):
        transformer = MODELS[name].build()
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.06)
