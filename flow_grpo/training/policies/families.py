"""The model families, one row each; a row and the file that it names are all that a family needs.

Nothing is imported here, so that a configuration can be checked without diffusers, which takes seconds to import.
"""

FAMILIES = {
    "sd3": "flow_grpo.training.policies.sd3:SD3Policy",
    "flux": "flow_grpo.training.policies.flux:FluxPolicy",
}
