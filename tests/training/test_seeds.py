"""Seeds: each follows from its numbers alone, and no two are related."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flow_grpo.training.seeds import Domain, sample_seed, seeded


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_mixed_seed_fits_torch_and_depends_on_each_number_and_its_place(a, b):
    seed = sample_seed(Domain.NOISE, a, b)
    assert 0 <= seed < 2**63
    assert sample_seed(Domain.NOISE, a, b) == seed != sample_seed(Domain.NOISE, a, b + 1)
    assert sample_seed(Domain.NOISE, b, a) != seed or a == b
    assert len({sample_seed(domain, a, b) for domain in Domain}) == len(Domain)


def test_neighbouring_numbers_give_unrelated_noise():
    one, other = (torch.randn(4000, generator=seeded(Domain.NOISE, 1, i)) for i in (0, 1))
    # the correlation of independent normals has a std of 1 / sqrt(4000) = 0.016
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.08
