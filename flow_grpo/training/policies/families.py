"""The model families, one row each. A new family needs a row, and the file that the row names.

Nothing is imported here, so that a configuration can be checked without diffusers, which takes seconds to import.
"""

FAMILIES = {
    "sd3": "flow_grpo.training.policies.sd3:SD3Policy",
    "flux": "flow_grpo.training.policies.flux:FluxPolicy",
    "flux2": "flow_grpo.training.policies.flux2:Flux2Policy",
    "flux2_klein": "flow_grpo.training.policies.flux2:Flux2KleinPolicy",
    "qwenimage": "flow_grpo.training.policies.qwenimage:QwenImagePolicy",
    "qwenimage21": "flow_grpo.training.policies.qwenimage21:QwenImage21Policy",
    "zimage": "flow_grpo.training.policies.zimage:ZImagePolicy",
}
