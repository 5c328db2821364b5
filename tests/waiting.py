"""Waits for what another thread or process will do."""

import time

import pytest

SECONDS = 1200  # only ends a test that would fail; below pytest's own limit, so that the test says what it waits for


def wait_until(condition):
    """Look every 50 ms, and fail the test where the condition never comes."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.05)
