"""What one runs. Every wing and script that is imported from here starts without transformers' words about torchvision."""

from flow_grpo.training.quiet import silence_import_noise

silence_import_noise()
