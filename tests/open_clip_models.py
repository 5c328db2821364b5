"""Small models with open_clip's attributes and arithmetic: that package needs torchvision, which the tests do without."""

import torch
import torch.nn.functional as F
from torch import nn

LENGTH = 12  # tokens


class Tokenizer:
    """Letters as tokens, in the call shape of open_clip's SimpleTokenizer."""

    def encode(self, text):
        return [1 + ord(letter) % 26 for letter in text]

    def __call__(self, texts):
        result = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        for row, text in zip(result, texts):
            tokens = [27, *self.encode(text), 28][:LENGTH]
            tokens[-1] = 28
            row[: len(tokens)] = torch.tensor(tokens)
        return result


class Model(nn.Module):
    """CLIP with `visual` and a bag of words for a text tower."""

    def __init__(self, visual, width=24):
        super().__init__()
        self.visual = visual
        self.words = nn.Embedding(29, width, padding_idx=0)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, tokens):
        places = torch.arange(1, LENGTH + 1, device=tokens.device)[:, None]
        return (self.words(tokens) * places.to(self.words.weight.dtype).rsqrt()).sum(dim=1)

    def logits(self, pixels, tokens):
        images, texts = F.normalize(self.visual(pixels), dim=1), F.normalize(self.encode_text(tokens), dim=1)
        return self.logit_scale.exp() * images @ texts.T


class Bottleneck(nn.Module):
    """Two convolutions with batch norms and a residual; halves the size."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.act1, self.act2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)

    def forward(self, hidden):
        residual = self.down(self.pool(hidden))
        hidden = self.bn2(self.conv2(self.pool(self.act1(self.bn1(self.conv1(hidden))))))
        hidden += residual
        return self.act2(hidden)


class AttentionPool(nn.Module):
    """The mean of all places asks all places."""

    def __init__(self, side, width, outputs, num_heads=2):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width))
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, hidden):
        places = hidden.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1) + self.positional_embedding
        return self.c_proj(self.attention(tokens[:, :1], tokens, tokens, need_weights=False)[0][:, 0])


class ResNet(nn.Module):
    """In the shape of ModifiedResNet: a stem, four stages, an attention pool."""

    def __init__(self, image_size=64, width=8, outputs=24):
        super().__init__()
        self.image_size = image_size
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)
        widths = [width, width, 2 * width, 2 * width, 4 * width]
        for stage in range(1, 5):
            setattr(self, f"layer{stage}", nn.Sequential(Bottleneck(widths[stage - 1], widths[stage])))
        self.attnpool = AttentionPool(image_size // 32, widths[4], outputs)

    def stem(self, pixels):
        return self.act1(self.bn1(self.conv1(pixels)))

    def forward(self, pixels):
        hidden = self.stem(pixels)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return self.attnpool(hidden)


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, tokens):
        return tokens * self.gamma


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width, num_heads, layer_scale):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ls_1 = LayerScale(width) if layer_scale else nn.Identity()
        self.ls_2 = LayerScale(width) if layer_scale else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens):
        normed = self.ln_1(tokens)
        tokens = tokens + self.ls_1(self.attn(normed, normed, normed, need_weights=False)[0])
        return tokens + self.ls_2(self.mlp(self.ln_2(tokens)))


class VisionTransformer(nn.Module):
    """In the shape of open_clip's."""

    def __init__(self, size=(32, 32), patch=8, width=32, num_layers=3, num_heads=4, outputs=24, layer_scale=False):
        super().__init__()
        self.image_size, self.pool_type, self.attn_pool = size, "tok", None
        self.grid_size = (size[0] // patch, size[1] // patch)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(self.grid_size[0] * self.grid_size[1] + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        blocks = [ResidualAttentionBlock(width, num_heads, layer_scale) for _ in range(num_layers)]
        self.transformer.resblocks = nn.ModuleList(blocks)
        self.proj = nn.Parameter(torch.randn(width, outputs))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        tokens = self.ln_pre(tokens + self.positional_embedding)
        for block in self.transformer.resblocks:
            tokens = block(tokens)
        return self.ln_post(tokens[:, 0]) @ self.proj


def make(visual):
    """A model around a tower, in evaluation, its running statistics and biases not those of a fresh module."""
    model = Model(visual).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_bias.normal_(std=0.3)
                module.out_proj.bias.normal_(std=0.3)
    return model, Tokenizer()
