"""Every field of a run, once: its default, its unit, what it does. `config/grpo.py` has the runs, as changes to this.

Any field can be set from the command line, `--config.seed=1`; what scorers a run has, and their options, in a run of
`config/grpo.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # The run
    config.run_dir = ""  # folder of everything that the run writes; empty: runs/<name of the configuration>
    config.name = "base"  # of the configuration
    config.seed = 42
    config.num_epochs = 1000  # an epoch: one rollout of num_groups groups, then its updates
    config.resume_from = ""  # "latest", a checkpoint's folder, or empty: start anew
    config.save_every = 10  # epochs between checkpoints
    config.keep_checkpoints = 3  # the newest are kept
    config.eval_every = 10  # epochs between evaluations on the test prompts; 0: never
    config.samples_every = 10  # epochs between tables of samples of the rollout; 0: never
    config.wandb_project = "flow_grpo"

    # The model
    config.policy = "sd3"  # model family, a file of flow_grpo/training/policies
    config.model = ""  # hub id or folder of a diffusers pipeline
    config.resolution = 512  # pixels, square
    config.max_sequence_length = 256  # T5 tokens of a prompt
    config.mixed_precision = "no"  # "no" (fp32), "fp16" or "bf16": of the frozen weights and of the forward pass
    config.lora_rank = 32
    config.lora_alpha = 64
    config.gradient_checkpointing = False  # recompute activations in the backward pass: less memory, a third more time
    config.compile = False  # torch.compile of the transformer's blocks: minutes at the start, faster steps after

    # The prompts
    config.dataset = ""  # folder with train and test, each .txt (a prompt a line) or .jsonl (with metadata)
    config.num_eval_prompts = 256  # the first of the test prompts; 0: all
    config.prompt_cache = ""  # folder that keeps every prompt's embedding, for later epochs and runs; empty: none
    config.prompt_cache_gib = 4.0  # embeddings kept in a process's memory; 0: none

    # The batch geometry of an epoch. num_gpus fills in group_size and batch_size where they are 0.
    config.num_gpus = 1  # processes of the run, CPU or GPU; must be what `accelerate launch` starts
    config.num_groups = 48  # prompts an epoch
    config.group_size = 0  # images a prompt
    config.batch_size = 0  # images a process samples, and trains on, at a time
    config.updates_per_epoch = 2  # optimizer steps an epoch

    # Sampling
    config.sample = sample = ml_collections.ConfigDict()
    sample.num_steps = 10  # denoising steps of a rollout
    sample.eval_num_steps = 40  # denoising steps of an evaluation, by the ODE
    sample.guidance_scale = 4.5  # classifier-free guidance, in sampling and training; 1: none. FLUX: its embedding
    sample.noise_level = 0.7  # of the SDE
    sample.sde = "flow"  # kind of SDE: "flow" (Flow-GRPO) or "cps"
    sample.sde_window_size = 0  # steps in a row that are stochastic and trained, the others follow the ODE; 0: all
    sample.sde_window_range = (0, 0)  # the window lies within these steps, the second excluded; drawn each epoch
    sample.same_start = False  # siblings start from one latent; Flow-GRPO: each from its own

    # The rewards
    # Dotted keys: a scorer of your own is named "package.module:factory".
    config.rewards = ml_collections.ConfigDict(allow_dotted_keys=True)  # scorer -> weight, e.g. {"ocr_map": 1.0}
    config.reward_options = ml_collections.ConfigDict(allow_dotted_keys=True)  # scorer -> its options

    # Token advantages; their formulas stand in flow_grpo/training/advantages.py
    config.advantage = advantage = ml_collections.ConfigDict()
    advantage.std = "global"  # "global" (all rewards of the epoch, Flow-GRPO) or "group"
    advantage.combine = "sum"  # several rewards: "sum" (Flow-GRPO's weighted sum) or "each" (normalised first: GDPO)
    advantage.mode = "weight"  # "scalar" (Flow-GRPO), "weight" or "residual"
    advantage.evidence = "own"  # of mode "weight": an image's "own" map, or "group": joined with its siblings'
    advantage.control = "none"  # maps made wrong on purpose: "rolled", "shuffled", "inverted" or "constant"
    advantage.alpha = 0.5  # strength of the map, 0 (none) to 1
    advantage.fade = 0.0  # alpha falls as (1 - sigma) ** fade; 0: the same at every step
    advantage.w_max = 8.0  # largest weight of a token; the mean is 1
    advantage.clip_max = 5.0  # advantages are clamped to +- this

    # The update
    config.train = train = ml_collections.ConfigDict()
    train.num_steps = 0  # steps of each rollout that are trained on; 0: the window's, or all but the last
    train.ratio = "gspo_token"  # "image" (Flow-GRPO), "gspo_token" or "token"
    train.clip_range = 1e-4  # of the ratio; "token" wants sqrt(tokens) times as much
    train.ratio_norm = False  # RatioNorm of GRPO-Guard: a ratio of mean 1 and of one spread at all steps
    train.skip_zero_advantages = False  # spend no forward on images without advantage; changes no result, needs beta 0
    train.beta = 0.04  # weight of the KL to the base model; 0: no KL and no base forward
    train.exact_kl = False  # keep |dt| in the KL's variance; Flow-GRPO leaves it out
    train.spatial_kl = 0.0  # how much less KL the rewarded region of the maps gets than the background, 0 to 1
    train.learning_rate = 3e-4  # AdamW
    train.weight_decay = 1e-4
    train.max_grad_norm = 1.0
    train.ema_decay = 0.9
    train.ema_every = 8  # optimizer steps between updates of the average

    return config
