"""Runs the arms side by side, one process and one thread each, so that all cores are in use."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from terse_demo.training import ArmResult, Settings, train

Progress = Callable[[str, int], None]
START = "spawn"  # the only way of starting processes that every system has


def train_arms(
    arms: Sequence[str], settings: Settings, bank: Path, progress: Progress, parallel: bool = True
) -> dict[str, ArmResult]:
    """Train every arm; the outcome does not depend on ``parallel``.

    Args:
        arms: which.
        settings: of the run.
        bank: the foregrounds.
        progress: called with an arm and the number of iterations it has done.
        parallel: each arm in a process of its own, all at once; else one after the other in this process.

    Raises:
        RuntimeError: a process ended before its arm was trained; the reason is on standard error.
    """
    if not parallel:
        return {arm: _train_here(arm, settings, bank, progress) for arm in arms}
    context = multiprocessing.get_context(START)
    receivers: dict[Connection, str] = {}
    processes = []
    try:
        for arm in arms:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_train_there, args=(sender, arm, settings, bank), daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            receivers[receiver] = arm
        return _collect(receivers, progress)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _collect(receivers: dict[Connection, str], progress: Progress) -> dict[str, ArmResult]:
    results: dict[str, ArmResult] = {}
    waiting = dict(receivers)
    while waiting:
        for receiver in wait(list(waiting)):
            try:
                message = receiver.recv()
            except EOFError:
                raise RuntimeError(f"the process that trained {waiting[receiver]!r} ended early") from None
            if isinstance(message, ArmResult):
                results[message.arm] = message
                del waiting[receiver]
            else:
                progress(waiting[receiver], message)
    return {arm: results[arm] for arm in receivers.values()}


def _train_here(arm: str, settings: Settings, bank: Path, progress: Progress) -> ArmResult:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return train(arm, settings, bank, lambda done: progress(arm, done))
    finally:
        torch.set_num_threads(threads)


def _train_there(sender: Connection, arm: str, settings: Settings, bank: Path) -> None:
    torch.set_num_threads(1)
    sender.send(train(arm, settings, bank, sender.send))
    sender.close()
