"""Waits for what another thread or process will do."""

import time

import pytest

SECONDS = 300  # only ends a test that would fail


def wait_until(condition):
    """Look every 50 ms, and fail the test where the condition never comes."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.05)
