"""The kinds of work that a profile tells apart, by operations as torch names them."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from scripts.benchmark.profile import KINDS, OTHER, RANK, kind_of, shares


@pytest.mark.parametrize(
    "name, shapes, kind",
    [
        ("aten::addmm", [[768], [1024, 192], [192, 768], [], []], "the transformer's products"),
        ("aten::mm", [[1024, 192], [192, RANK]], "LoRA's products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [[16, 3, 160, 64]], "attention"),
        ("aten::mkldnn_convolution", [[1, 40, 64, 64]], "the VAE's convolutions"),
        ("aten::gelu_backward", [[16, 64, 768]], "activations, norms, modulation"),
        ("aten::copy_", [[16, 64, 768]], "copies"),
        ("aten::view", [[16, 64, 768]], OTHER),
    ],
)
def test_an_operation_is_of_its_kind(name, shapes, kind):
    assert kind_of(name, shapes) == kind


def test_the_shares_of_a_step_are_those_of_what_it_computes():
    layer = lora.Linear(nn.Linear(256, 256), "default", config=LoraConfig(r=RANK), r=RANK, lora_alpha=RANK)
    x = torch.randn(512, 256)
    found = shares(lambda: layer(x).sum().backward(), "cpu")
    assert sum(found.values()) == pytest.approx(1) and set(found) <= {
        "the transformer's products",
        "LoRA's products",
        *KINDS,
        OTHER,
    }
    assert found["the transformer's products"] > 0 and found["LoRA's products"] > 0
