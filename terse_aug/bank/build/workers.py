"""Work on chunks of images in several processes, its results in order: of a bank's build, and of composites.

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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import cloudpickle
import cv2
import loky
from loky.process_executor import BrokenProcessPool

from terse_aug.bank.inputs.pillow_settings import PillowSettings

MAX_DEFAULT_JOBS = 8
"""Largest number of processes that is chosen where the user gives none."""

_TRIAL_SECONDS = 1.0
_WORTHWHILE_SECONDS = 4.0
_CHUNKS_AHEAD_PER_JOB = 2
_PARENT_CHECK_SECONDS = 0.5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One thread in each process, unless the user's environment sets these variables."""
_ADVICE = "leave out what is no number, text, list, mapping or array"


class ChunkResult(Protocol):
    """What comes of a chunk; ``images`` of it are done."""

    @property
    def images(self) -> int:
        """How many."""


Result = TypeVar("Result", bound=ChunkResult)
Result_co = TypeVar("Result_co", bound=ChunkResult, covariant=True)


class ChunkTask(Protocol[Result_co]):
    """What is done with each chunk. It is sent to worker processes."""

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """``None`` where a function of the user's is involved, which several processes might not stand."""

    def run(self, items: Sequence[Any], on_image: Callable[[int], None] | None = None) -> Result_co:
        """Do it; ``on_image`` is called with the number of images done."""


class ChunkSource(Protocol):
    """What the chunks are of."""

    def prepared(self, chunk: Sequence[Any]) -> list[Any]:
        """The items of a chunk as the task is given them."""


class _CannotShareWork(Exception):
    """Why other processes cannot do the work, and what to do about it."""


class _CannotShareImages(Exception):
    """Why other processes cannot have the annotations of some images."""


def check_jobs(jobs: int | None) -> None:
    """Raise ``ValueError`` unless ``jobs`` is a number of processes, or ``None``."""
    if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise ValueError(f"expected jobs of at least 1 process, or None for an automatic number, got {jobs!r}")


def run_in_order(
    task: ChunkTask[Result],
    source: ChunkSource,
    chunks: Sequence[Sequence[Any]],
    jobs: int | None,
    on_images: Callable[[int], None],
    worthwhile_seconds: float = _WORTHWHILE_SECONDS,
) -> Generator[Result, None, None]:
    """Do a task with chunks, in this process or in others; close the iterator to stop them.

    Two or three chunks for each process are in memory at a time.

    Args:
        task: what to do.
        source: what the chunks are of.
        chunks: some of its chunks.
        jobs: number of processes. With ``None`` this process begins, and others (one per core, at most 8) are started
            once the work has taken a second and will take ``worthwhile_seconds`` more; not where a function of the
            user's is involved.
        on_images: called with the number of images of these chunks that are done.
        worthwhile_seconds: see ``jobs``.

    Warns:
        UserWarning: this process does the rest, or some images, since others cannot.

    Raises:
        ChildProcessError: a process died.
    """
    done, total, rest = 0, sum(map(len, chunks)), deque(chunks)
    wanted, started = _process_count(task, jobs), time.perf_counter()
    while rest:
        seconds = time.perf_counter() - started
        is_worthwhile = seconds >= _TRIAL_SECONDS and seconds / max(done, 1) * (total - done) >= worthwhile_seconds
        if wanted > 1 and (jobs is not None or is_worthwhile):
            for chunk in _run_in_processes(task, source, rest, min(wanted, len(rest))):
                done += chunk.images
                yield chunk
                on_images(done)
            wanted = 1  # for what they left
            continue
        items, before = source.prepared(rest.popleft()), done
        chunk = task.run(items, partial(_report, on_images, before))
        done += chunk.images
        yield chunk


def _report(on_images: Callable[[int], None], before: int, count: int) -> None:
    on_images(before + count)


def _process_count(task: ChunkTask[Any], jobs: int | None) -> int:
    if multiprocessing.current_process().daemon:  # which may have no children
        return 1
    if jobs is not None:
        return jobs
    return 1 if task.settings is None else min(loky.cpu_count(), MAX_DEFAULT_JOBS)


def _run_in_processes(
    task: ChunkTask[Result], source: ChunkSource, rest: deque[Sequence[Any]], jobs: int
) -> Iterator[Result]:
    """Do chunks in other processes, or here what they cannot have; where they cannot work, fill ``rest``."""
    ahead: deque[tuple[Sequence[Any], Any]] = deque()
    is_warned = False
    try:
        with _executor(jobs, _pickled(task), _pickled_settings()) as executor:
            while rest or ahead:
                while rest and len(ahead) <= _CHUNKS_AHEAD_PER_JOB * jobs:
                    items = _pickled_images(source.prepared(rest[0]))
                    with _starting():
                        ahead.append((rest[0], executor.submit(_run, items)))
                    rest.popleft()
                try:
                    chunk = ahead[0][1].result()
                except _CannotShareImages as reason:
                    chunk = task.run(source.prepared(ahead[0][0]))
                    if not is_warned:
                        warnings.warn(f"{reason}, so this process extracts these images; {_ADVICE}", stacklevel=2)
                    is_warned = True
                ahead.popleft()
                yield chunk
    except _CannotShareWork as reason:
        rest.extendleft(chunk for chunk, _ in reversed(ahead))
        warnings.warn(f"{reason}, so one process does the rest; jobs=1 (--jobs 1) avoids this warning", stacklevel=2)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process died, most likely because memory ran out: use fewer processes (jobs, --jobs)"
        ) from error


@contextmanager
def _executor(jobs: int, task: bytes, settings: bytes) -> Iterator[Any]:
    """Processes that end with the block, however it is left, or with this process."""
    threads = {name: os.environ.get(name, "1") for name in _THREAD_VARIABLES}
    with _starting():
        arguments = (os.getpid(), task, settings)
        executor = loky.ProcessPoolExecutor(jobs, initializer=_begin, initargs=arguments, env=threads)
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
        raise _CannotShareWork(f"processes cannot be started ({_named(error)})") from error


def _pickled(task: ChunkTask[Any]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:  # whatever a user's function raises
        raise _CannotShareWork(f"what makes the masks cannot be sent to other processes ({_named(error)})") from error


def _pickled_settings() -> bytes:
    try:
        return bytes(cloudpickle.dumps(PillowSettings.of_this_process()))
    except Exception as error:  # whatever a plug-in raises
        raise _CannotShareWork(f"pillow's plug-ins cannot be sent to other processes ({_named(error)})") from error


def _pickled_images(items: list[Any]) -> bytes | _CannotShareImages:
    try:
        return bytes(cloudpickle.dumps(items))
    except Exception as error:  # whatever a user's object raises
        return _CannotShareImages(f"annotations cannot be sent to other processes ({_named(error)})")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


_task: ChunkTask[Any] | _CannotShareWork


def _begin(parent: int, task: bytes, settings: bytes) -> None:
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends this process
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)  # OpenCV ignores the variables
    loaded = "pillow's plug-ins"
    try:
        cloudpickle.loads(settings).apply()
        loaded = "boxes"
        _task = cloudpickle.loads(task)
    except Exception as error:  # raised in here, it would look like the death of a process
        _task = _CannotShareWork(f"{loaded} cannot be loaded in other processes ({_named(error)})")


def _run(images: bytes | _CannotShareImages) -> Any:
    for reason in (_task, images):
        if isinstance(reason, Exception):
            raise reason
    try:
        items = cloudpickle.loads(images)
    except Exception as error:  # whatever a module raises that is imported for it
        raise _CannotShareImages(f"annotations cannot be loaded in other processes ({_named(error)})") from error
    assert not isinstance(_task, Exception)
    return _task.run(items)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)
