"""Train a flow-matching model with reward maps.

python train_sd3.py --config config/grpo.py:tiny_ocr_map
accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_sd3 --config.num_gpus=8 \\
    --config.resume_from=latest
"""

from absl import app, flags
from ml_collections import config_flags
from torch.distributed.elastic.multiprocessing.errors import record

from config.validation import resolve
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.interrupt import keep_printing

CONFIG = config_flags.DEFINE_config_file("config", help_string="config/grpo.py:NAME; fields by --config.FIELD=VALUE")


@record  # so that the launcher's last words hold the error
def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; fields are set by --config.FIELD=VALUE")
    keep_printing()
    config, geometry = resolve(CONFIG.value, Distributed.launched_processes())
    # The trainer brings diffusers and the rest; what is wrong with a configuration is said before.
    from flow_grpo.training.quiet import silence_known_noise

    silence_known_noise()  # before the libraries are imported in full: they speak as they load
    from flow_grpo.training.build import build
    from flow_grpo.training.trainer import Trainer

    Trainer(build(config, geometry, Distributed(config.mixed_precision))).train()


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
