"""The dtypes that `mixed_precision` names. In a file of its own: who needs them should not wait for diffusers."""

import torch

WEIGHT_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
