"""Prompt embeddings: whatever tensors a family names, sliced, joined and padded without knowing them."""

import torch

from flow_grpo.training.policies.base import PromptEmbeds


def embeds(*lengths):
    """A sequence with its mask, the rows as long as they are told, and one tensor without a sequence."""
    longest = max(lengths)
    tokens = torch.arange(1.0, len(lengths) * longest * 2 + 1).reshape(len(lengths), longest, 2)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return PromptEmbeds(tokens=tokens * mask[..., None], mask=mask, scale=torch.tensor(lengths))


def test_rows_are_taken_from_every_tensor():
    both = embeds(2, 3)
    taken = both[torch.tensor([1, 0, 1])]
    assert len(both) == 2 and len(taken) == 3
    assert all(torch.equal(tensor, vars(both)[name][[1, 0, 1]]) for name, tensor in vars(taken).items())


def test_joining_slices_gives_the_batch_back():
    both = embeds(3, 3)
    joined = PromptEmbeds.cat([both[:1], both[1:]])
    assert all(torch.equal(tensor, vars(both)[name]) for name, tensor in vars(joined).items())


def test_a_shorter_sequence_is_padded_at_its_end_and_its_mask_says_so():
    joined = PromptEmbeds.cat([embeds(2), embeds(4, 3)])
    assert joined.tokens.shape == (3, 4, 2)
    assert joined.mask.tolist() == [[True, True, False, False], [True] * 4, [True, True, True, False]]
    assert torch.equal(joined.tokens[0, :2], embeds(2).tokens[0]) and not joined.tokens[0, 2:].any()
    assert joined.mask.dtype == torch.bool and joined.scale.tolist() == [2, 4, 3]


def test_bytes_are_those_of_all_tensors():
    assert embeds(2, 3).num_bytes == 2 * 3 * 2 * 4 + 2 * 3 + 2 * 8


def test_a_function_is_applied_to_every_tensor():
    half = embeds(2).map(lambda tensor: tensor.to(torch.float16))
    assert {tensor.dtype for tensor in vars(half).values()} == {torch.float16}
