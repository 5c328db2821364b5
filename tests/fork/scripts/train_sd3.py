"""A fork's own trainer, in the shapes of Flow-GRPO's: two epochs of two groups of four images, on the CPU, without KL.

python scripts/train_sd3.py MODEL OUT [STRENGTH ...]: one run a strength of the map, where there is a map; saves what each did.
"""

import sys
from collections import defaultdict
from concurrent import futures
from types import SimpleNamespace

import torch
from diffusers import StableDiffusion3Pipeline
from flow_grpo.diffusers_patch.sd3_pipeline_with_logprob import pipeline_with_logprob
from flow_grpo.diffusers_patch.sd3_sde_with_logprob import sde_step_with_logprob
from peft import LoraConfig, get_peft_model

import flow_grpo.rewards

# forks.md: scripts/train_sd3.py, among the imports
# forks.md: end

PROMPTS = ['a brown ring and a pink sign "ROM"', 'a brown square and a blue sign "POR"']
GROUP, NUM_STEPS, NUM_TRAINED, NOISE_LEVEL = 4, 4, 3, 0.7
config = SimpleNamespace(train=SimpleNamespace(adv_clip_max=5, clip_range=1e-4, learning_rate=1e-2))


def compute_log_prob(transformer, pipeline, sample, j):
    noise_pred = transformer(
        hidden_states=sample["latents"][:, j],
        timestep=sample["timesteps"][:, j],
        encoder_hidden_states=sample["prompt_embeds"],
        pooled_projections=sample["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    prev_sample, log_prob, prev_sample_mean, std_dev_t = sde_step_with_logprob(
        pipeline.scheduler,
        noise_pred.float(),
        sample["timesteps"][:, j],
        sample["latents"][:, j].float(),
        noise_level=NOISE_LEVEL,
        prev_sample=sample["next_latents"][:, j].float(),
    )
    # forks.md: scripts/train_sd3.py, in compute_log_prob, before it returns
    # forks.md: end
    return prev_sample, log_prob, prev_sample_mean, std_dev_t


def sample_epoch(pipeline, reward_fn, executor, generator):
    """One dict a group, as the trainer collects them."""
    samples = []
    for prompt in PROMPTS:
        prompts = [prompt] * GROUP
        with torch.no_grad():
            embeds, _, pooled, _ = pipeline.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=34
            )
        images, latents, log_probs = pipeline_with_logprob(
            pipeline, embeds, pooled, NUM_STEPS, 64, NOISE_LEVEL, generator
        )
        latents = torch.stack(latents, dim=1)  # (B, steps + 1, C, h, w)
        samples.append(
            {
                "prompt_embeds": embeds,
                "pooled_prompt_embeds": pooled,
                "timesteps": pipeline.scheduler.timesteps.repeat(GROUP, 1),
                "latents": latents[:, :-1],
                "next_latents": latents[:, 1:],
                "log_probs": torch.stack(log_probs, dim=1),
                "rewards": executor.submit(reward_fn, images, prompts, [{}] * GROUP, only_strict=True),
            }
        )
    for sample in samples:
        # forks.md: scripts/train_sd3.py, where the rewards are waited for
        rewards, reward_metadata = sample["rewards"].result()
        # forks.md: end
        sample["rewards"] = torch.stack(list(rewards["avg"]))
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def with_advantages(samples):
    """The epoch's samples with advantages (B, T), without those that have none."""
    rewards = samples.pop("rewards").double()
    advantages = torch.cat(
        [(group - group.mean()) / (rewards.std(correction=0) + 1e-4) for group in rewards.split(GROUP)]
    )
    samples["advantages"] = advantages.unsqueeze(1).repeat(1, NUM_TRAINED)
    # forks.md: scripts/train_sd3.py, after samples["advantages"] is set
    # forks.md: end
    mask = samples["advantages"].abs().sum(dim=1) != 0
    return {name: values[mask] for name, values in samples.items()}


def train_epoch(transformer, pipeline, optimizer, sample, info):
    for j in range(NUM_TRAINED):
        prev_sample, log_prob, prev_sample_mean, std_dev_t = compute_log_prob(transformer, pipeline, sample, j)
        # forks.md: scripts/train_sd3.py, from the clamp of the advantages to the policy loss
        advantages = torch.clamp(sample["advantages"][:, j], -config.train.adv_clip_max, config.train.adv_clip_max)
        ratio = (log_prob - sample["log_probs"][:, j]).exp()
        clipped = ratio.clamp(1 - config.train.clip_range, 1 + config.train.clip_range)
        policy_loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
        # forks.md: end
        # forks.md: scripts/train_sd3.py, in place of approx_kl and the three clipfracs
        info["clipfrac"].append(((ratio - 1).abs() > config.train.clip_range).float().mean())
        # forks.md: end
        info["policy_loss"].append(policy_loss.detach())
        policy_loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(folder):
    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
    lora = LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=targets)
    pipeline.transformer.requires_grad_(False)
    transformer = pipeline.transformer = get_peft_model(pipeline.transformer, lora)
    trained = {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}
    # SGD, whose steps are as small as the gradients: two runs can be compared
    optimizer = torch.optim.SGD(trained.values(), lr=config.train.learning_rate)
    reward_fn, info = flow_grpo.rewards.multi_score("cpu", {"ocr_map": 1.0}), defaultdict(list)
    with futures.ThreadPoolExecutor(max_workers=8) as executor:
        for epoch in range(2):
            generator = torch.Generator().manual_seed(epoch)
            samples = with_advantages(sample_epoch(pipeline, reward_fn, executor, generator))
            info["num_samples"].append(torch.tensor(float(len(samples["advantages"]))))
            train_epoch(transformer, pipeline, optimizer, samples, info)
    info = {name: torch.stack(values) for name, values in info.items()}
    return {"weights": {name: weight.detach().clone() for name, weight in trained.items()}, "info": info}


if __name__ == "__main__":
    model, out, *strengths = sys.argv[1:]
    runs = {}
    for strength in strengths or ["none"]:
        if strength != "none":
            sys.modules["flow_grpo.token_loss"].ALPHA = float(strength)
        runs[strength] = run(model)
    torch.save(runs, out)
