"""A fork's own sampling of a diffusers pipeline, in the shape of Flow-GRPO's."""

import torch
from flow_grpo.diffusers_patch.sd3_sde_with_logprob import sde_step_with_logprob

# forks.md: flow_grpo/diffusers_patch/sd3_pipeline_with_logprob.py, among the imports
# forks.md: end


@torch.no_grad()
def pipeline_with_logprob(self, prompt_embeds, pooled_prompt_embeds, num_inference_steps, size, noise_level, generator):
    """Images (B, 3, size, size) in [0, 1], every latent, and every step's log-probs."""
    shape = (len(prompt_embeds), self.transformer.config.in_channels, *[size // self.vae_scale_factor] * 2)
    latents = torch.randn(shape, generator=generator)
    self.scheduler.set_timesteps(num_inference_steps)
    all_latents, all_log_probs = [latents], []
    for t in self.scheduler.timesteps:
        noise_pred = self.transformer(
            hidden_states=latents,
            timestep=t.expand(len(latents)),
            encoder_hidden_states=prompt_embeds,
            pooled_projections=pooled_prompt_embeds,
            return_dict=False,
        )[0]
        latents, log_prob, prev_latents_mean, std_dev_t = sde_step_with_logprob(
            self.scheduler, noise_pred.float(), t.unsqueeze(0), latents.float(), noise_level, generator=generator
        )
        # forks.md: flow_grpo/diffusers_patch/sd3_pipeline_with_logprob.py, after the call of sde_step_with_logprob
        # forks.md: end
        all_latents.append(latents)
        all_log_probs.append(log_prob)
    scaled = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
    image = self.vae.decode(scaled, return_dict=False)[0]
    return self.image_processor.postprocess(image, output_type="pt"), all_latents, all_log_probs
