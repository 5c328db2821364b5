"""Small CLIP models with random weights, and the tokenizer they share: enough for whatever no training is needed for."""

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

LENGTH = 16  # tokens


def make_tokenizer():
    """Spells every word letter by letter, so that a prompt of 15 letters is too long."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)


def make_clip(seed=0, image_size=32, patch_size=8, num_layers=3, width=32, num_heads=4, **vision):
    """A CLIPModel whose every parameter is random, biases and norms too, so that no term of a sum is zero by chance."""
    tokenizer = make_tokenizer()
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": num_layers}
    config = CLIPConfig(
        text_config={**tower, "num_attention_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
        | tokens,
        vision_config={**tower, "num_attention_heads": num_heads, "image_size": image_size, "patch_size": patch_size}
        | vision,
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(offset + torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.2))
    return model, tokenizer


class Scores(torch.nn.Module):
    """Preprocessed pixels (B, 3, H, W) -> logits (B, B) of each image against each text: what other libraries explain."""

    def __init__(self, features, texts, logit_scale):
        super().__init__()
        self.features, self.texts, self.logit_scale = features, texts, logit_scale

    def forward(self, pixels):
        embeds = self.features(pixels)
        return self.logit_scale * torch.nn.functional.normalize(embeds, dim=1) @ self.texts.T


def scores_of(pair, clip, prompts):
    """Such a module around a whole CLIPModel, run by transformers' own code."""
    model, _ = pair

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

        def forward(self, pixels):
            return self.visual_projection(self.vision_model(pixels).pooler_output)

    return Scores(Features(), clip.embed_texts(prompts)[0], clip.logit_scale)
