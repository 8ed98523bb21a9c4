"""The threads beside a loop: as the library's, but at work while the interpreter ends."""

import asyncio
import subprocess
import sys
import threading

import pytest

from hivemint.client.generation.loop import LoopThread
from hivemint.client.generation.workers import Workers


def test_what_is_submitted_is_done_or_its_error_is_told() -> None:
    workers = Workers(2)
    assert workers.submit(pow, 2, exp=5).result(5) == 32
    with pytest.raises(ZeroDivisionError):
        workers.submit(divmod, 1, 0).result(5)
    assert [one.result(5) for one in [workers.submit(abs, -n) for n in range(50)]] == list(range(50))
    workers.shutdown()


def test_as_many_work_at_once_as_there_may_be_and_no_more() -> None:
    workers, both = Workers(2), threading.Barrier(2)
    for one in [workers.submit(both.wait, 5) for _ in range(6)]:
        one.result(10)
    assert sum(one.name == "hivemint-worker" for one in threading.enumerate()) >= 2
    hold = threading.Event()
    held = [workers.submit(hold.wait, 5) for _ in range(2)]
    third = workers.submit(int)
    assert not third.done()
    hold.set()
    assert third.result(5) == 0
    assert all(one.result(5) for one in held)
    workers.shutdown()


def test_they_end_with_their_loop() -> None:
    loop = LoopThread()
    names: list[threading.Thread] = []
    loop.run(asyncio.to_thread, lambda: names.append(threading.current_thread()))
    loop.stop()
    names[0].join(5)
    assert not names[0].is_alive()


def test_a_thread_that_is_no_daemon_works_on_after_the_main_thread_has_ended() -> None:
    text = """
import asyncio, threading, time
from hivemint.client.generation.loop import LoopThread
loop = LoopThread()
def work():
    threading.main_thread().join()
    time.sleep(0.1)
    print(loop.run(asyncio.to_thread, pow, 2, 5))
threading.Thread(target=work).start()
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("32\n", "", 0)
