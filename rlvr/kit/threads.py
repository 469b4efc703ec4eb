"""Every call in a thread of its own: what is bound to the main thread, or to one thread, fails at once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class FreshThreads(ThreadPoolExecutor):
    """An executor for `loop.set_default_executor`. Its threads are daemons: a call that never ends stops nobody."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.num_begun = 0
        self._running: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._running.add(future)
        self.num_begun += 1
        context = contextvars.copy_context()

        def work() -> None:
            try:
                result = context.run(function, *args, **options)
            except BaseException as error:
                outcome: tuple[Any, BaseException | None] = (None, error)
            else:
                outcome = (result, None)
            self._running.discard(future)
            if outcome[1] is None:
                future.set_result(outcome[0])
            else:
                future.set_exception(outcome[1])

        threading.Thread(target=work, daemon=True, name=f"call {self.num_begun}").start()
        return future

    @property
    def num_running(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._running)

    async def idle(self, seconds: float) -> bool:
        """Wait until no call runs; whether that came about within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._running:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True
