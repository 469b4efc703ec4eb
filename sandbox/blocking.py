"""Sandboxes are asynchronous and verifiers are not: one event loop a process, in a thread of its own, joins the two."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar, cast

T = TypeVar("T")

_lock = threading.Lock()
_loop: tuple[int, asyncio.AbstractEventLoop] | None = None


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, from any thread (one with a running event loop included: it blocks).

    A caller that is interrupted cancels its work, and waits until the work has let go of what it holds.
    """
    future = asyncio.run_coroutine_threadsafe(work, _running_loop())
    try:
        return future.result()
    except BaseException:
        if not future.done():
            future.cancel()
            _settle()
        raise


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread`, but at the exit of the process as well, where executors take no more work."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def work() -> None:
        result, failure = None, None
        try:
            result = call(*args)
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="rlvr-sandbox-call", daemon=True).start()
    return await future


def _settle() -> None:
    """Wait until everything that was cancelled had a moment to clean up."""
    try:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), _running_loop()).result(timeout=1)
    except (CancelledError, TimeoutError):
        return


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        # A forked child has the variable, but not the thread.
        if _loop is None or _loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rlvr-sandboxes", daemon=True).start()
            _loop = (os.getpid(), loop)
        return _loop[1]
