"""Make a tiny model of the signs world from nothing.

    python -m scripts.pretrain sd3     # models/tiny-sd3, a complete StableDiffusion3Pipeline: 90 minutes on one core
    python -m scripts.pretrain clip    # models/tiny-clip, a CLIPModel: 4 minutes on one core

The same command, run again, goes on from the last checkpoints in --work-dir. tiny_sd3_training.py and
tiny_clip_training.py say how each model is trained.
"""

import argparse
from pathlib import Path

import torch

from scripts.pretrain.tiny_clip_training import pretrain_clip
from scripts.pretrain.tiny_sd3_training import pretrain_sd3


def main() -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work-dir", type=Path, default=Path("runs/pretrain"), help="checkpoints and the sample sheet")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--num-scenes", type=int, default=20_000, help="size of the rendered training set")
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = parser.add_subparsers(metavar="MODEL", required=True)

    sd3 = models.add_parser("sd3", help="the diffusion pipeline", parents=[common])
    sd3.set_defaults(pretrain=pretrain_sd3)
    sd3.add_argument("--out", type=Path, default=Path("models/tiny-sd3"), help="where the pipeline folder goes")
    sd3.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sd3.add_argument("--text-steps", type=int, default=1000)
    sd3.add_argument("--autoencoder-steps", type=int, default=1500)
    sd3.add_argument("--anywhere-steps", type=int, default=1750, help="the transformer's first, signs anywhere")
    sd3.add_argument("--transformer-steps", type=int, default=3250, help="of the transformer in all, the rest on slots")
    sd3.add_argument("--weathering-steps", type=int, default=700)
    sd3.add_argument("--compile", action="store_true", help="torch.compile the transformer: 1.5x on a CPU, needs g++")

    clip = models.add_parser("clip", help="the CLIP that scores and maps", parents=[common])
    clip.set_defaults(pretrain=pretrain_clip)
    clip.add_argument("--out", type=Path, default=Path("models/tiny-clip"), help="where the model folder goes")
    clip.add_argument("--clip-steps", type=int, default=700)

    args = parser.parse_args()
    args.pretrain(args)


if __name__ == "__main__":
    main()
