"""Futures of scores: done at once, one made from another, several as one."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


def done(value: Any) -> Future:
    """A future that holds a value already."""
    future = Future()
    future.set_result(value)
    return future


def then(future: Future, function: Callable[[Any], Any]) -> Future:
    """A future of function(the result); the function runs in the thread that finishes the first."""
    following = Future()

    def go_on(finished: Future) -> None:
        try:
            following.set_result(function(finished.result()))
        except Exception as error:  # whatever it is, the one who waits raises it
            following.set_exception(error)

    future.add_done_callback(go_on)
    return following


def all_of(futures: Sequence[Future]) -> Future:
    """A future of the list of results, in order; it raises the error of the first in order that failed."""
    together, lock, num_left = Future(), threading.Lock(), len(futures)

    def count(_: Future) -> None:
        nonlocal num_left
        with lock:
            num_left -= 1
            if num_left:
                return
        try:
            together.set_result([future.result() for future in futures])
        except Exception as error:  # as above
            together.set_exception(error)

    if not futures:
        together.set_result([])
    for future in futures:
        future.add_done_callback(count)
    return together
