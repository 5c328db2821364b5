"""tiny-sd3: a StableDiffusion3Pipeline small enough to train from nothing on a CPU, with every part that the large one has.

The CLIP slots hold two three-layer towers, the T5 slot a three-layer encoder; all read the captions' words whole and the
letters on the signs one by one. The latent autoencoder is an AutoencoderTiny of factor 4: 64 image tokens of 8x8 pixels.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from scripts.pretrain.signs_world import COLORS, SHAPES, SIZE

CLIP_LENGTH = 34  # tokens; the longest caption has 33 with both ends
T5_LENGTH = 34
TEXT_WIDTH = 128  # of a T5 token; the two CLIP towers have half each
MOST_TOKENS = 16  # per side of an image: 128 px


def make_clip_tokenizer(length: int = CLIP_LENGTH, extra_words: Sequence[str] = ()) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the captions' words whole, and extra_words, and spells every other word.

    Merges are merges: a sign's "RE" comes out as one token. The T5's tokenizer keeps every letter by itself.
    """
    characters = list("abcdefghijklmnopqrstuvwxyz0123456789\",.'!?-:")
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    merges = []
    # Longer words first: a merge of "red" would otherwise break "green" apart before its own merges have a turn.
    for word in sorted(("and", "sign", *extra_words, *COLORS, *SHAPES), key=len, reverse=True):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            pieces[:2] = ["".join(pair)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def make_t5_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, in lower case, and of single capitals: the letters on the signs."""
    words = ("a", "and", "sign", *COLORS, *SHAPES, ",", '"')
    tokens = ["<pad>", "</s>", "<unk>", *words, *(chr(code) for code in range(ord("A"), ord("Z") + 1))]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[a-z]+|."), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=T5_LENGTH,
    )


def make_clip_tower(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    width = TEXT_WIDTH // 2
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def places(width: int) -> torch.Tensor:
    """The embeddings (1, MOST_TOKENS ** 2, width) of a token's row and column.

    An image takes the middle of the table. That of the training's 8 x 8 tokens has the rows and columns 0 to 7, as in a table
    that ends there; those before and after let the model draw larger images, of any shape.
    """
    first = -(MOST_TOKENS - SIZE // 8) // 2
    numbers = torch.arange(first, first + MOST_TOKENS, dtype=torch.float64)
    columns, rows = torch.meshgrid(numbers, numbers, indexing="xy")
    table = get_2d_sincos_pos_embed_from_grid(width, torch.stack([columns, rows]), output_type="pt")
    return table.float()[None]


def make_pipeline() -> StableDiffusion3Pipeline:
    """tiny-sd3 with random weights: 3.6 M parameters in the transformer, 64 image tokens of 8x8 pixels.

    The order in which the parts are made is part of the weights: they draw from one generator.
    """
    clip_tokenizer, t5_tokenizer = make_clip_tokenizer(), make_t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderTiny(
            latent_channels=8,
            encoder_block_out_channels=(40, 40, 40),
            decoder_block_out_channels=(40, 40, 40),
            num_encoder_blocks=(1, 2, 2),
            num_decoder_blocks=(2, 2, 1),
        ),
        text_encoder=make_clip_tower(clip_tokenizer),
        tokenizer=clip_tokenizer,
        text_encoder_2=make_clip_tower(clip_tokenizer),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=make_t5_tower(t5_tokenizer),
        tokenizer_3=t5_tokenizer,
    )


def make_transformer(width: int = 128) -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=6,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=MOST_TOKENS,
        qk_norm="rms_norm",
    )
    transformer.pos_embed.pos_embed.copy_(places(width))
    for name, module in transformer.named_modules():  # adaLN-zero: each block starts as the identity (arXiv:2212.09748)
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def make_t5_tower(tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=32,
            num_heads=4,
            d_ff=2 * TEXT_WIDTH,
            num_layers=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
