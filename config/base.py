"""All fields of a run at their defaults; `run_fields.py` and `training_fields.py` say what each does.

Any field can be set on the command line, as in `--config.seed=1`. `config/grpo.py` has the runs, as changes to the
defaults. `python -m config.options` writes docs/options.md.
"""

import ml_collections
from ml_collections import config_dict

from config.run_fields import Batch, Model, Prompts, Run
from config.training_fields import Advantage, Rewards, Sampling, Update


class Fields(Rewards, Batch, Prompts, Model, Run):
    """All fields of a run."""

    sample: Sampling = Sampling()
    advantage: Advantage = Advantage()
    train: Update = Update()


# The tables of docs/options.md, in order: (section, what stands before its fields' names)
TABLES = [
    *((section, "") for section in (Run, Model, Prompts, Batch)),
    (Sampling, "sample."),
    (Rewards, ""),
    (Advantage, "advantage."),
    (Update, "train."),
]


def get_config() -> ml_collections.ConfigDict:
    """The fields at their defaults. Dotted keys: a scorer of your own is named "package.module:factory"."""
    fields = Fields().model_dump()
    config = ml_collections.ConfigDict(fields)
    del config.resolution, config.eval_resolution  # of more types than their defaults'
    config.resolution = config_dict.FieldReference(fields["resolution"], field_type=object)
    config.eval_resolution = config_dict.FieldReference(fields["eval_resolution"], field_type=object)
    for name in ("rewards", "reward_options", "eval_rewards"):
        del config[name]
        config[name] = ml_collections.ConfigDict(allow_dotted_keys=True)
    return config
