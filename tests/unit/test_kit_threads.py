"""No thread of the kit passes for an earlier one, and none stays."""

from __future__ import annotations

import gc
import threading
import time
import weakref

from rlvr.kit.threads import FreshThreads


def test_calls_one_after_another_never_run_under_one_thread_id() -> None:
    threads = FreshThreads()
    for _ in range(50):
        seen = [threads.submit(threading.get_ident).result(10) for _ in range(4)]
        assert len(set(seen)) == 4
    threads.shutdown()


def test_a_call_that_is_over_holds_nothing_and_threads_end_with_the_executor() -> None:
    class Thing:
        pass

    others = {*threading.enumerate()}
    threads, thing = FreshThreads(), Thing()
    gone = weakref.ref(thing)
    assert threads.submit(lambda thing: "done", thing).result(10) == "done"
    del thing
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert gone() is None

    assert {*threading.enumerate()} - others
    threads.shutdown()
    while {*threading.enumerate()} - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not {*threading.enumerate()} - others
