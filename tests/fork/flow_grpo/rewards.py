"""A fork's own rewards: its multi_score has Flow-GRPO's shape, and two of its score functions are our scorers."""

import os

from flow_grpo_maps.scorers import as_reward_fn, make_scorer


def brightness(device):
    """One of the fork's own: fn(images, prompts, metadata) -> (scores, extras)."""
    return lambda images, prompts, metadata: (images.mean(dim=(1, 2, 3)), {})


def clip_gradcam(device):
    return as_reward_fn(make_scorer("clip_gradcam", device, model=os.environ["CLIP_MODEL"]))


def ocr_map(device):
    return as_reward_fn(make_scorer("ocr_map", num_workers=1))  # a process by the name that is installed


def multi_score(device, score_dict):
    """{name: weight} -> fn that gives {name: scores, "avg": weighted sums} and drops what else the functions gave."""
    score_functions = {"brightness": brightness, "clip_gradcam": clip_gradcam, "ocr_map": ocr_map}
    score_fns = {name: score_functions[name](device) for name in score_dict}

    def _fn(images, prompts, metadata, ref_images=None, only_strict=True):
        score_details, total_scores = {}, [0.0] * len(prompts)
        # forks.md: flow_grpo/rewards.py, in _fn of multi_score, before its loop
        # forks.md: end
        for score_name, weight in score_dict.items():
            # forks.md: flow_grpo/rewards.py, in _fn of multi_score, the last branch of its loop
            scores, _ = score_fns[score_name](images, prompts, metadata)
            # forks.md: end
            score_details[score_name] = scores
            total_scores = [total + weight * score for total, score in zip(total_scores, scores, strict=True)]
        score_details["avg"] = total_scores
        # forks.md: flow_grpo/rewards.py, in _fn of multi_score, its last line
        return score_details, {}
        # forks.md: end

    return _fn
