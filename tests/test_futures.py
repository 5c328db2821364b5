"""Futures: made one from another, and joined; what goes wrong in one is raised by those that follow."""

import gc
import weakref
from concurrent.futures import Future

import pytest

from flow_grpo.futures import all_of, done, then


def test_a_future_that_follows_another_is_done_when_it_is():
    first = Future()
    following = then(first, lambda value: value + 1)
    assert not following.done()
    first.set_result(1)
    assert following.result(timeout=0) == 2
    assert then(done(5), str).result(timeout=0) == "5"


def test_an_error_in_either_is_raised_by_the_one_that_follows():
    with pytest.raises(ZeroDivisionError):
        then(done(0), lambda value: 1 / value).result(timeout=0)
    first = Future()
    following = then(first, str)
    first.set_exception(KeyError("gone"))
    with pytest.raises(KeyError, match="gone"):
        following.result(timeout=0)


def test_several_are_one_in_their_order_whatever_comes_first():
    futures = [Future(), Future()]
    together = all_of(futures)
    futures[1].set_result("b")
    assert not together.done()
    futures[0].set_result("a")
    assert together.result(timeout=0) == ["a", "b"]
    assert all_of([]).result(timeout=0) == []


def test_of_several_errors_the_first_in_order_is_raised_and_only_when_all_are_done():
    futures = [Future(), Future(), Future()]
    together = all_of(futures)
    futures[2].set_exception(KeyError("third"))
    futures[1].set_exception(ValueError("second"))
    assert not together.done()
    futures[0].set_result(1)
    with pytest.raises(ValueError, match="second"):
        together.result(timeout=0)


def test_what_is_done_is_forgotten_without_a_garbage_collection():
    """A reader ends its workers when it is forgotten, and the futures of its batches refer to it."""

    class Reader:
        def finished(self, results):
            return results

    reader, futures = Reader(), [Future(), Future()]
    forgotten, together = weakref.ref(reader), then(all_of(futures), reader.finished)
    gc.disable()
    try:
        for future in futures:
            future.set_result("lines")
        assert together.result(timeout=0) == ["lines"] * 2
        del reader, future, futures, together
        assert forgotten() is None
    finally:
        gc.enable()
