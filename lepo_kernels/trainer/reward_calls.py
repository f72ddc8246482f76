"""Calling reward functions: no longer than they may take, and Ctrl-C ends the wait at once.

Without a time limit, plain functions run where they are called, usually on the main thread: those
that bound themselves by ``signal.alarm`` need it. With one, each call runs on a thread of its own;
a thread cannot be stopped, so one that takes too long is abandoned: as a daemon it keeps neither
the run nor the interpreter from ending, but runs until then.

Async functions run side by side, in an event loop on a thread that lasts as long as the process, so
that clients they keep between calls stay usable. They are cancelled when they take too long.
"""

import asyncio
import concurrent.futures
import contextvars
import inspect
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lepo_kernels.trainer.reward_errors import RewardError, raised

# What a cancelled coroutine may take to clean up, in seconds.
_GRACE = 1.0


class Call(NamedTuple):
    """A function with its name and its arguments."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


def call_all(calls: Sequence[Call], timeout: float | None) -> list[Any]:
    """What the calls return: plain functions one after the other, then the async ones together.

    Args:
        calls: what to call.
        timeout: seconds that one call may take; None for no limit.

    Raises:
        RewardError: a function raised (chained) or took too long; it names the function.
    """
    returned: list[Any] = []
    try:
        for call in calls:
            returned.append(_call(call, timeout))
    except BaseException:
        _close(returned)
        raise
    waiting = [index for index, value in enumerate(returned) if inspect.isawaitable(value)]
    if waiting:
        names = [calls[index].name for index in waiting]
        values = _LOOP.gather(names, [returned[index] for index in waiting], timeout)
        for index, value in zip(waiting, values, strict=True):
            returned[index] = value
    return returned


def _call(call: Call, timeout: float | None) -> Any:
    try:
        if timeout is None:
            return call.function(**call.arguments)
        return _on_a_thread(call, timeout)
    except RewardError:
        raise
    # A function that calls sys.exit() must not end the run as if all were well.
    except (Exception, SystemExit) as error:
        raise raised(call.name, error) from error


def _on_a_thread(call: Call, timeout: float) -> Any:
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    context = contextvars.copy_context()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    grad = torch.is_grad_enabled()

    def work() -> Any:
        # Both are settings of a thread.
        if device is not None:
            torch.cuda.set_device(device)
        with torch.set_grad_enabled(grad):
            return call.function(**call.arguments)

    def run() -> None:
        try:
            outcome.put((context.run(work), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, name=f"reward {call.name}", daemon=True).start()
    try:
        value, error = outcome.get(timeout=timeout)
    except queue.Empty:
        raise _too_slow([call.name], timeout) from None
    if error is not None:
        raise error
    return value


def _too_slow(names: list[str], timeout: float) -> RewardError:
    named = ", ".join(map(repr, names))
    return RewardError(f"reward function {named}: took longer than reward_timeout = {timeout:g} s")


def _close(values: list[Any]) -> None:
    """Close the coroutines that will not be awaited: Python warns of each that was forgotten."""
    for value in values:
        if inspect.iscoroutine(value):
            value.close()


class _LoopThread:
    """An event loop on a thread of its own, made when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def gather(self, names: list[str], awaitables: list[Any], timeout: float | None) -> list[Any]:
        """The results of awaitables that run side by side.

        Raises:
            RewardError: see `call_all`.
        """
        running = set(names)
        future = asyncio.run_coroutine_threadsafe(
            _gather(names, awaitables, timeout, running), self._started()
        )
        try:
            return future.result(None if timeout is None else timeout + _GRACE)
        except concurrent.futures.TimeoutError:
            # A coroutine that never awaits holds the loop; the next call takes a new one.
            self._loop = None
            assert timeout is not None
            raise _too_slow([name for name in names if name in running], timeout) from None
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="async rewards", daemon=True
                ).start()
            return self._loop


_LOOP = _LoopThread()


async def _gather(
    names: list[str], awaitables: list[Any], timeout: float | None, running: set[str]
) -> list[Any]:
    """Await all; ``running`` loses the name of each that is done."""
    tasks = [
        asyncio.ensure_future(_named(name, awaitable))
        for name, awaitable in zip(names, awaitables, strict=True)
    ]
    for name, task in zip(names, tasks, strict=True):
        task.add_done_callback(lambda _, name=name: running.discard(name))  # type: ignore[misc]
    try:
        _, late = await asyncio.wait(tasks, timeout=timeout)
    finally:
        for task in tasks:
            task.cancel()
    if late:
        assert timeout is not None
        raise _too_slow(
            [name for name, task in zip(names, tasks, strict=True) if task in late], timeout
        )
    return [_result(name, task) for name, task in zip(names, tasks, strict=True)]


async def _named(name: str, awaitable: Any) -> Any:
    try:
        return await awaitable
    except RewardError:
        raise
    # The last two would end the loop, and leave who waits for it waiting.
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise raised(name, error) from error


def _result(name: str, task: "asyncio.Future[Any]") -> Any:
    try:
        return task.result()
    except asyncio.CancelledError as error:  # the function's own doing
        raise raised(name, error) from error
