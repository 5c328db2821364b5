"""Helpers for futures: one that is done already, one that follows another, one that waits for several."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


def done(value: Any) -> Future:
    """A future that already holds this value."""
    future = Future()
    future.set_result(value)
    return future


def then(future: Future, function: Callable[[Any], Any]) -> Future:
    """A future of function(result of `future`). The function runs in the thread that finishes `future`."""
    following = Future()

    def go_on(finished: Future) -> None:
        try:
            following.set_result(function(finished.result()))
        except Exception as error:  # any error is raised where the result is awaited
            following.set_exception(error)

    future.add_done_callback(go_on)
    return following


def all_of(futures: Sequence[Future]) -> Future:
    """A future of the list of results, in order. If several fail, it raises the error of the first in the list."""
    together, lock, num_left, waiting = Future(), threading.Lock(), len(futures), list(futures)

    def count(_: Future) -> None:
        nonlocal num_left
        with lock:
            num_left -= 1
            if num_left:
                return
        try:
            together.set_result([future.result() for future in waiting])
        except Exception as error:  # as above
            together.set_exception(error)
        waiting.clear()  # each future refers to this function: a cycle would keep all of them until it is collected

    if not futures:
        together.set_result([])
    for future in futures:
        future.add_done_callback(count)
    return together
