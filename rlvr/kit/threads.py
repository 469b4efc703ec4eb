"""Every call in a thread of its own: what is bound to the main thread, or to one thread, fails at once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# So many threads stay until later ones have begun: an ended thread's id would be given to the next one, and what is
# bound to it would work there.
_KEPT = 8


class FreshThreads(ThreadPoolExecutor):
    """An executor for `loop.set_default_executor`. Its threads are daemons: a call that never ends stops nobody."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.num_begun = 0
        self._running: set[Future[Any]] = set()
        self._kept: deque[threading.Event] = deque()
        self._more_begun = asyncio.Event()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._running.add(future)
        self.num_begun += 1
        self._more_begun.set()
        context = contextvars.copy_context()
        may_end = threading.Event()

        def call() -> None:
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

        calls = [call]

        def work() -> None:
            calls.pop()()  # and holds nothing of it while it waits
            may_end.wait()

        threading.Thread(target=work, daemon=True, name=f"call {self.num_begun}").start()
        self._kept.append(may_end)
        if len(self._kept) > _KEPT:
            self._kept.popleft().set()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for may_end in self._kept:
            may_end.set()
        self._kept.clear()
        super().shutdown(wait, cancel_futures=cancel_futures)

    @property
    def num_running(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._running)

    async def begun(self, number: int) -> None:
        """Wait until so many calls have begun, ever."""
        while self.num_begun < number:
            self._more_begun.clear()
            await self._more_begun.wait()

    async def idle(self, seconds: float) -> bool:
        """Wait until no call runs; whether that came about within `seconds`."""
        pending = [asyncio.wrap_future(future) for future in self._running]
        return not pending or not (await asyncio.wait(pending, timeout=seconds))[1]
