"""Attacks of an audit side by side, each in a process with one part of the threads.

Small networks gain little from a second thread. What an attack finds is kept where `run` looks for it, so the
audit itself then reads it like that of an earlier, interrupted run.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from privdfs_bench.audit.jobs import Job
from privdfs_bench.audit.run import kept_at, run
from privdfs_bench.audit.victim import Attacked
from privdfs_bench.errors import BenchError

#: Each process holds the images and what is made of them, up to 3 GB.
MOST = 4
_victim: Attacked  # of a process that attacks


def run_side_by_side(
    victim: Attacked, wanted: Sequence[Job], folder: Path, threads: int, finished: Callable[[Job], None]
) -> None:
    """Run attacks that have not been run before; with one thread, none: there is nothing to gain.

    Args:
        victim: What is attacked.
        wanted: The attacks.
        folder: Of what they find.
        threads: Of all processes together.
        finished: Called with each attack whose file is there.

    Raises:
        AttackError: One cannot be run. What others have found until then is kept.
        BenchError: A process was killed, as happens where memory runs out.
    """
    processes = min(threads, MOST)
    missing = [job for job in wanted if not kept_at(victim, job, folder).exists()]
    if processes < 2 or len(missing) < 2:
        return
    context = multiprocessing.get_context("spawn")  # a forked child would inherit threads that it does not have
    with ProcessPoolExecutor(processes, context, _open, (victim.again, threads // processes)) as pool:
        running = {pool.submit(_run, job, folder): job for job in missing}
        try:
            for one in as_completed(running):
                one.result()
                finished(running[one])
        except BrokenProcessPool as error:
            raise BenchError(
                "a process that attacks was killed, perhaps for want of memory. The same command goes on; with"
                " --threads 1 it takes one attack at a time"
            ) from error
        finally:
            if not all(one.done() for one in running):  # an error or Ctrl-C: nobody waits minutes for the others
                for process in multiprocessing.active_children():
                    process.terminate()


def _open(make: Callable[[], Attacked], threads: int) -> None:
    """Start a process; Ctrl-C is for the one that started it."""
    global _victim  # noqa: PLW0603  a process has one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _victim = make()


def _run(job: Job, folder: Path) -> None:
    run(_victim, job, folder, lambda _done, _loss: None)
