"""The part of a fork's trainer that meets the rewards: it scores the batch that it is given, and saves what came back."""

import sys
from concurrent import futures

# None in sys.modules makes an import of that name fail: our scorers must do without the trainer's libraries.
sys.modules.update(dict.fromkeys(("diffusers", "accelerate", "peft", "wandb", "ml_collections")))

import torch  # noqa: E402

import flow_grpo.rewards  # noqa: E402


def main() -> None:
    batch = torch.load(sys.argv[1])
    reward_fn = flow_grpo.rewards.multi_score("cpu", batch["weights"])
    with futures.ThreadPoolExecutor(max_workers=8) as executor:
        submitted = executor.submit(reward_fn, batch["images"], batch["prompts"], batch["metadata"], only_strict=True)
        score_details, extras = submitted.result()
    loaded = {
        name: module.__file__
        for name, module in sys.modules.items()
        if name.startswith(("flow_grpo.", "flow_grpo_maps."))
    }
    torch.save({"details": score_details, "extras": extras, "loaded": loaded}, sys.argv[2])


if __name__ == "__main__":
    main()
