"""Contenders timed in turn, each in a process of its own, so that no thread pool disturbs another.

A contender is a function `(work, threads) -> run`, and `run(steps) -> (seconds, parameters)` starts from
the work's own start each time. It raises `Skip` with a reason where it cannot serve.
"""

import importlib
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[int], tuple[float, Any]]
PATIENCE = 900
"""Seconds that a contender may take for one answer."""


class Skip(Exception):
    """Why a contender does not take part."""


def need(module: str) -> Any:
    """The module, or `Skip`."""
    if importlib.util.find_spec(module) is None:
        raise Skip(f"{module} is not installed")
    return importlib.import_module(module)


def clock(fn: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    begin = time.perf_counter()
    out = fn()
    return time.perf_counter() - begin, out


@dataclass
class Result:
    """What one contender did, at the best of its settings."""

    name: str
    seconds: list[float]  # of the counted runs; of one step where the case counts steps
    threads: int = 0
    score: float | None = None  # of its final parameters, by the case's own float64 yardstick
    memory: float = 0.0  # MiB at the peak over what the process held before the first run
    skipped: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def _peak() -> float:
    """MiB at this process's peak. (`ru_maxrss` would begin at the parent's.)"""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _serve(pipe: Any, contender: Callable, work: Any, threads: int, warm: int) -> None:
    try:
        run = contender(work, threads)
        before = _peak()
        first, _ = run(warm)
        pipe.send(((before, first), None))
    except Skip as reason:
        pipe.send((None, str(reason)))
        return
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"))
        return
    while (steps := pipe.recv()) is not None:
        pipe.send((*run(steps), _peak()))


class Worker:
    """One contender with one number of threads, warm, in its process."""

    def __init__(self, name: str, contender: Callable, work: Any, threads: int, warm: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.threads = name, threads
        self.pipe, other = context.Pipe()
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        kept = {key: os.environ.get(key) for key in (*pools, "JAX_ENABLE_X64")}
        os.environ.update({key: str(threads) for key in pools})
        os.environ["JAX_ENABLE_X64"] = "1" if work.dtype == "float64" else "0"
        arguments = (other, contender, work, threads, warm)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()
        for key, value in kept.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
        ready, self.skipped = self._answer()
        self.before, self.first = ready or (0.0, 0.0)
        self.score, self.memory = None, 0.0

    def _answer(self) -> Any:
        try:
            if self.pipe.poll(PATIENCE):
                return self.pipe.recv()
            return None, f"no answer in {PATIENCE} s"
        except EOFError:
            return None, "its process was killed"

    def seconds(self, steps: int) -> tuple[float, Any]:
        """One run, and its parameters."""
        self.pipe.send(steps)
        answer = self._answer()
        if len(answer) == 2:
            raise Skip(answer[1])
        seconds, parameters, peak = answer
        self.memory = peak - self.before
        return seconds, parameters

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def contest(
    contenders: dict[str, Callable], work: Any, steps: tuple[int, int], repeats: int
) -> list[Result]:
    """Every contender at each number of threads, in turn; the best setting of each.

    `steps` (short, long): the time of a step is that of the difference, so that nobody pays for his
    start; with short 0 it is that of the whole run.
    """
    short, long = steps
    workers = []
    skipped = []
    for name, contender in contenders.items():
        mine = getattr(contender, "threads", None) or range(1, (os.cpu_count() or 1) + 1)
        for threads in mine:
            worker = Worker(name, contender, work, threads, short or long)
            if worker.skipped:
                worker.end()
                if name not in [r.name for r in skipped]:
                    skipped.append(Result(name, [], skipped=worker.skipped))
            else:
                workers.append(worker)
    times: dict[Worker, list[float]] = {worker: [] for worker in workers}
    for _ in range(repeats):
        for worker in list(times):
            try:
                base = worker.seconds(short)[0] if short else 0.0
                seconds, parameters = worker.seconds(long)
            except Skip as reason:
                skipped.append(Result(worker.name, [], worker.threads, skipped=str(reason)))
                del times[worker]
                continue
            times[worker].append((seconds - base) / ((long - short) if short else 1))
            worker.score = work.score(parameters)
    results: dict[str, Result] = {}
    for worker, seconds in times.items():
        now = Result(worker.name, seconds, worker.threads, worker.score, worker.memory)
        if worker.name not in results or now.median < results[worker.name].median:
            results[worker.name] = now
    for worker in workers:
        worker.end()
    return [*results.values(), *(r for r in skipped if r.name not in results)]


def limits() -> dict[str, float]:
    """What this machine can do: GF/s of a large product in both precisions, GB/s of a large copy."""
    out = {}
    for dtype in (np.float32, np.float64):
        a = np.ones((2048, 2048), dtype)
        a @ a
        seconds = statistics.median(clock(lambda a=a: a @ a)[0] for _ in range(5))
        out[np.dtype(dtype).name] = 2 * 2048**3 / seconds / 1e9
    a = np.ones(2**27, np.float32)
    b = np.empty_like(a)
    seconds = statistics.median(clock(lambda: np.copyto(b, a))[0] for _ in range(5))
    out["copy"] = 2 * a.nbytes / seconds / 1e9
    return out
