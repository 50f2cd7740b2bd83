"""Extraction in several processes, its results in order.

On loky rather than joblib: joblib's generator keeps all results that are not yet consumed, so memory would grow where
the disk is slower than the workers. Processes are spawned and not forked: a fork would copy locks that other threads
hold, and a GPU's state. They do not run the user's main module again.
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
from typing import Any

import cloudpickle
import cv2
import loky
from loky.process_executor import BrokenProcessPool

from terse_aug.bank.build.chunks import ExtractedChunk, ExtractionTask, Source

MAX_DEFAULT_JOBS = 8
"""Largest number of processes that is chosen where the user gives none."""

_TRIAL_SECONDS = 1.0
_WORTHWHILE_SECONDS = 4.0
_CHUNKS_AHEAD_PER_JOB = 2
_PARENT_CHECK_SECONDS = 0.5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One thread in each process, unless the user's environment sets these variables."""


class _CannotShareWork(Exception):
    """The reason why other processes cannot do the work."""


def check_jobs(jobs: int | None) -> None:
    """Raise ``ValueError`` unless ``jobs`` is a number of processes, or ``None``."""
    if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise ValueError(f"expected jobs of at least 1 process, or None for an automatic number, got {jobs!r}")


def extract_in_order(
    task: ExtractionTask,
    source: Source,
    chunks: Sequence[Sequence[Any]],
    jobs: int | None,
    on_images: Callable[[int], None],
) -> Generator[ExtractedChunk, None, None]:
    """Extract chunks, in this process or in others; close the iterator to stop them.

    Two or three chunks for each process are in memory at a time.

    Args:
        task: how to extract.
        source: what the chunks are of.
        chunks: some of its chunks.
        jobs: number of processes. With ``None`` this process begins, and others (one per core, at most 8) are started
            once the work has taken a second and will take four more; not where a function of the user's is involved.
        on_images: called with the number of images of these chunks that are done.

    Warns:
        UserWarning: this process does the rest, since others cannot.

    Raises:
        ChildProcessError: a process died.
    """
    done, total, rest = 0, sum(map(len, chunks)), deque(chunks)
    wanted, started = _process_count(task, jobs), time.perf_counter()
    while rest:
        seconds = time.perf_counter() - started
        is_worthwhile = seconds >= _TRIAL_SECONDS and seconds / max(done, 1) * (total - done) >= _WORTHWHILE_SECONDS
        if wanted > 1 and (jobs is not None or is_worthwhile):
            for chunk in _extract_in_processes(task, source, rest, min(wanted, len(rest))):
                done += chunk.images
                yield chunk
                on_images(done)
            wanted = 1  # for what they left
            continue
        items, before = source.prepared(rest.popleft()), done
        # mypy cannot infer a lambda with a default
        chunk = task.extract(items, lambda count, before=before: on_images(before + count))  # type: ignore[misc]
        done += chunk.images
        yield chunk


def _process_count(task: ExtractionTask, jobs: int | None) -> int:
    if multiprocessing.current_process().daemon:  # which may have no children
        return 1
    if jobs is not None:
        return jobs
    return 1 if task.settings is None else min(loky.cpu_count(), MAX_DEFAULT_JOBS)


def _extract_in_processes(
    task: ExtractionTask, source: Source, rest: deque[Sequence[Any]], jobs: int
) -> Iterator[ExtractedChunk]:
    """Extract chunks in other processes; where they cannot do it, what is left stays in ``rest``."""
    ahead: deque[tuple[Sequence[Any], Any]] = deque()
    try:
        with _executor(jobs, _pickled(task, "boxes")) as executor:
            while rest or ahead:
                while rest and len(ahead) <= _CHUNKS_AHEAD_PER_JOB * jobs:
                    items = _pickled(source.prepared(rest[0]), "annotations")
                    with _starting():
                        ahead.append((rest[0], executor.submit(_extract, items)))
                    rest.popleft()
                chunk = ahead[0][1].result()
                ahead.popleft()
                yield chunk
    except _CannotShareWork as reason:
        rest.extendleft(chunk for chunk, _ in reversed(ahead))
        warnings.warn(f"{reason}, so one process does the rest", stacklevel=2)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that extracts objects died, most likely because memory ran out: use fewer processes "
            "(jobs, --jobs)"
        ) from error


@contextmanager
def _executor(jobs: int, task: bytes) -> Iterator[Any]:
    """Processes that end with the block, however it is left, or with this process."""
    threads = {name: os.environ.get(name, "1") for name in _THREAD_VARIABLES}
    with _starting():
        executor = loky.ProcessPoolExecutor(jobs, initializer=_begin, initargs=(os.getpid(), task), env=threads)
    try:
        yield executor
    except BaseException:
        started = list(executor._processes.values())
        executor.shutdown(kill_workers=True)
        for process in started:  # loky forgets them where not all could be started
            process.terminate()
        raise
    executor.shutdown()


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise
    except Exception as error:  # loky fails in several ways where there are no files, semaphores or processes left
        raise _CannotShareWork(f"processes cannot be started ({type(error).__name__}: {error})") from error


def _pickled(value: Any, name: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # whatever a user's object raises
        reason = f"{type(error).__name__}: {error}"
        raise _CannotShareWork(f"{name} cannot be sent to other processes ({reason})") from error


def _unpickled(pickled: bytes, name: str) -> Any:
    try:
        return cloudpickle.loads(pickled)
    except Exception as error:  # whatever a module raises that is imported for it
        reason = f"{type(error).__name__}: {error}"
        raise _CannotShareWork(f"{name} cannot be loaded in other processes ({reason})") from error


_task: ExtractionTask | _CannotShareWork


def _begin(parent: int, task: bytes) -> None:
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends this process
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)  # OpenCV ignores the variables
    try:
        _task = _unpickled(task, "boxes")
    except _CannotShareWork as reason:  # an error in here would look like the death of a process
        _task = reason


def _extract(items: bytes) -> ExtractedChunk:
    if isinstance(_task, _CannotShareWork):
        raise _task
    return _task.extract(_unpickled(items, "annotations"))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)
