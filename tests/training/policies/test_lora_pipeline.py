"""What all families share: here, that a run of many sizes of images is compiled for each of them."""

from types import SimpleNamespace

import torch
from torch._dynamo.testing import CompileCounter

from flow_grpo.training.policies.lora_pipeline import LoraPipeline


class Block(torch.nn.Module):
    def forward(self, x):
        return x + 1


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block()])

    def forward(self, x):
        return self.blocks[0](x)


@torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=2)
def test_every_size_is_compiled_whatever_torch_allows():
    """torch's limits are 8 graphs of a function and 256 in all; beyond them it runs the function uncompiled."""
    policy, counter = SimpleNamespace(network=Network()), CompileCounter()
    LoraPipeline.compile(policy, backend=counter)
    for num_sizes in range(1, 5):
        policy.network(torch.zeros(num_sizes))
        assert counter.frame_count == num_sizes
