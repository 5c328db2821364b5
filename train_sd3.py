"""Train a flow-matching model with reward maps.

python train_sd3.py --config config/grpo.py:tiny_ocr_map
accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_sd3 --config.num_gpus=8 \\
    --config.resume_from=latest
python train_sd3.py --config.resume_from=runs/tiny_ocr_map      # goes on with the fields that the run had
"""

import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from config.command_line import parse
from config.options import help_text
from config.validation import resolve
from flow_grpo.training.interrupt import keep_printing

ROOT = Path(__file__).parent


@record  # so that the launcher's last words hold the error
def main(arguments: list[str]) -> None:
    keep_printing()
    if {"--help", "-h"} & set(arguments):
        print(help_text())
        return
    from flow_grpo.training.distributed import Distributed  # brings diffusers, which the help does not wait for

    config, geometry = resolve(parse(arguments), Distributed.launched_processes())
    # The trainer brings diffusers and the rest; what is wrong with a configuration is said before.
    from flow_grpo.training.build import build
    from flow_grpo.training.trainer import Trainer

    distributed = Distributed(config.mixed_precision)
    Trainer(build(config, geometry, distributed)).train()
    distributed.leave()


def is_users(error: BaseException) -> bool:
    """Whether a line of this project refused something: its message says all that a user needs."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = Path(trace.tb_frame.f_code.co_filename).resolve()
    return isinstance(error, ValueError | ImportError) and raised_in.is_relative_to(ROOT)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        if not is_users(error):
            raise
        from flow_grpo.training.distributed import Distributed

        # the launcher's last words hold the error of the process that failed first, also where that one is silent
        sys.exit(f"train_sd3.py: {error}" if Distributed.speaks() else 1)
