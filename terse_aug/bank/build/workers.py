"""Work in several processes, its results in order. Imports loky, cloudpickle and opencv.

Processes are started anew and not forked: a fork would copy the locks of other threads as they are held, and a GPU's
state, which does not survive it. They do not run the user's main module again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import cloudpickle
import cv2
import loky
from loky.process_executor import BrokenProcessPool

from terse_aug.bank.build.chunks import Cut, Source, Task

MOST_JOBS = 8
"""That are taken where nobody says how many."""

_ALONE = 1.0
_WORTH = 4.0
_AHEAD_PER_JOB = 2
_WATCH = 0.5
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One in each process, as the other cores have processes of their own, unless the user's environment says otherwise."""

Result = TypeVar("Result")


def check_jobs(jobs: int | None) -> None:
    """Raise ``ValueError`` unless ``jobs`` is a number of processes, or ``None``."""
    if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise ValueError(f"expected jobs of at least 1 process, or None for as many as pay, got {jobs!r}")


def cut_in_order(
    task: Task, source: Source, chunks: Sequence[Sequence[Any]], jobs: int | None, tell: Callable[[int], None]
) -> Generator[Cut, None, None]:
    """Cut chunks, here or in other processes.

    A few of them are in memory at a time. Close the iterator to stop the processes.

    Args:
        task: how.
        source: that they are of.
        chunks: some of it.
        jobs: processes; ``None`` for one for each core, at most 8, once it has shown that the work takes longer than
            they take to start, and one where a function of the user's is in it.
        tell: called with the number of images of these chunks that are done.

    Warns:
        UserWarning: this process does all, all that is left, or some images, since others cannot.

    Raises:
        ChildProcessError: a process died.
    """
    done, left, rest = 0, sum(map(len, chunks)), deque(chunks)
    wanted, started = _processes(task, jobs), time.perf_counter()
    payload = _payload(task) if wanted > 1 else None
    while rest:
        if payload is None or _stays_alone(started, done, left - done, jobs):
            own = source.ready(rest.popleft())
            cut = task.cut(own, lambda count, before=done: tell(before + count))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            done += cut.images
            yield cut
            continue
        for cut in _in_others(task, payload, source, rest, min(wanted, len(rest))):
            done += cut.images
            yield cut
            tell(done)
        payload = None


def apart(function: Callable[..., Result], *arguments: Any) -> Result | None:
    """Call a function in a process of its own; ``None`` where that died, or cannot be."""
    if _may_have_no_children():
        return None
    try:
        with _executor(1, None) as executor:
            result: Result = _submitted(executor, function, *arguments).result()
            return result
    except (BrokenProcessPool, _Alone):
        return None


def _may_have_no_children() -> bool:
    return multiprocessing.current_process().daemon


def _processes(task: Task, jobs: int | None) -> int:
    if _may_have_no_children():
        return 1
    if jobs is not None:
        return jobs
    return 1 if task.settings is None else min(loky.cpu_count(), MOST_JOBS)


def _payload(task: Task) -> bytes | None:
    """The task for other processes; ``None`` where it cannot be sent."""
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:  # whatever a user's object raises
        warnings.warn(
            f"boxes cannot be sent to other processes ({type(error).__name__}: {error}), so one process does all; "
            "give a function of a module, which loads its model when it is first called",
            stacklevel=2,
        )
        return None


def _stays_alone(started: float, done: int, left: int, jobs: int | None) -> bool:
    """Whether the work is too little for starting processes to pay, as far as is known."""
    if jobs is not None:
        return False
    spent = time.perf_counter() - started
    return spent < _ALONE or spent / max(done, 1) * left < _WORTH


class _Alone(Exception):
    """Why other processes cannot do the work."""


def _in_others(task: Task, payload: bytes, source: Source, rest: deque[Sequence[Any]], jobs: int) -> Iterator[Cut]:
    """Cut chunks in other processes, and here what cannot be sent; where there are no others the rest is left."""
    ahead: deque[tuple[Sequence[Any], Any]] = deque()
    try:
        with _executor(jobs, payload) as executor:
            while rest or ahead:
                while rest and len(ahead) <= _AHEAD_PER_JOB * jobs:
                    units = _pickled(source.ready(rest[0]))
                    ahead.append((rest[0], None if units is None else _submitted(executor, _cut, units)))
                    rest.popleft()
                chunk, future = ahead[0]
                cut = task.cut(source.ready(chunk)) if future is None else future.result()
                ahead.popleft()
                yield cut
    except _Alone as reason:
        rest.extendleft(chunk for chunk, _ in reversed(ahead))
        warnings.warn(f"{reason}, so one process does what is left", stacklevel=2)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that cut objects out died; most likely the system ended it for want of memory: take fewer "
            "processes (jobs, --jobs)"
        ) from error


def _pickled(units: Sequence[Any]) -> bytes | None:
    """Units for other processes; ``None`` where they cannot be sent."""
    try:
        return bytes(cloudpickle.dumps(units))
    except Exception as error:  # whatever an object in the annotations raises
        warnings.warn(
            f"images cannot be sent to other processes with what is known of them ({type(error).__name__}: {error}), "
            "so this process cuts them",
            stacklevel=2,
        )
        return None


@contextmanager
def _executor(jobs: int, payload: bytes | None) -> Iterator[Any]:
    """Processes that end with the block, however it is left, or with this process."""
    threads = {name: os.environ.get(name, "1") for name in _THREADS}
    with _starting():
        executor = loky.ProcessPoolExecutor(jobs, initializer=_begin, initargs=(os.getpid(), payload), env=threads)
    try:
        yield executor
    except BaseException:
        started = list(executor._processes.values())
        executor.shutdown(kill_workers=True)
        for process in started:  # nobody watches over them where not all could be started
            process.terminate()
        raise
    executor.shutdown()


def _submitted(executor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The future of a call; processes are started for the first one."""
    with _starting():
        return executor.submit(function, *arguments)


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise
    except Exception as error:  # loky stumbles in several ways where there are no files, semaphores or processes left
        raise _Alone(f"processes cannot be started ({type(error).__name__}: {error})") from error


_task: Task | _Alone


def _begin(parent: int, payload: bytes | None) -> None:
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C, which a terminal gives to all, ends the one that ends this
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)  # which heeds none of _THREADS
    if payload is not None:
        try:
            _task = _loaded(payload, "boxes")
        except _Alone as reason:  # an error here would look like the death of a process
            _task = reason


def _cut(units: bytes) -> Cut:
    if isinstance(_task, _Alone):
        raise _task
    return _task.cut(_loaded(units, "what is known of images"))


def _loaded(pickled: bytes, what: str) -> Any:
    try:
        return cloudpickle.loads(pickled)
    except Exception as error:  # whatever a module raises that is imported for it
        reason = f"{type(error).__name__}: {error}"
        raise _Alone(f"{what} cannot be loaded in other processes ({reason})") from error


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)
