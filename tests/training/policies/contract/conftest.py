"""The policies and the pipeline of each family that many tests ask and none changes."""

from functools import cache

import pytest

from tests.training.policies.asking import randomise_adapter


@pytest.fixture(scope="session")
def shared(family):
    """shared(mixed_precision, **options) -> a policy that several tests ask, and none changes: loading takes most seconds."""
    return cache(family.make_policy)


@pytest.fixture(scope="session")
def policy(shared):
    return shared("no")


@pytest.fixture(scope="session")
def adapted(family):
    """A policy whose adapter, of scale alpha / rank = 2, changes the velocity."""
    policy = family.make_policy(lora_rank=4, lora_alpha=8)
    randomise_adapter(policy)
    return policy


@pytest.fixture(scope="session")
def pipeline(family):
    return family.load_pipeline()
