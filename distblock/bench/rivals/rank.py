"""A rival's process: ``python -m distblock.bench.rivals.rank FOLDER RANK`` does the folder's trials, one by one."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from distblock.bench.rivals.steps import Step, make_step
from distblock.bench.rivals.trials import CHECKED, Task, Trial, read_task
from distblock.learning.host import explain


def main(folder: Path, rank: int) -> int:
    """Leave a line for each trial, up to the first that fails: after it, processes may be out of step."""
    task, trials = read_task(folder)
    processes = trials[0].processes
    if processes > 1:
        distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    with (folder / f"rank{rank}.jsonl").open("w") as file:
        for trial in trials:
            try:
                done = _run(task, trial, rank)
            except Exception as error:
                done = {"error": explain(error)}
            file.write(json.dumps(done) + "\n")
            file.flush()
            if "error" in done:
                return 1
    if processes > 1:
        distributed.destroy_process_group()
    return 0


def _run(task: Task, trial: Trial, rank: int) -> dict[str, Any]:
    torch.set_num_threads(trial.threads)
    batches = task.load()
    # Judged by what it does in fp32: a young network makes so much of bf16's rounding that it would hide a stage that
    # does not train.
    losses = _losses(make_step(task, replace(trial, wire="fp32"), rank), batches[:CHECKED])
    step = make_step(task, trial, rank)
    for number in range(task.warm_up):
        step(*batches[number % len(batches)])
    return {"losses": losses, "seconds": _timed(step, task, batches)}


def _losses(step: Step, batches: list[Any]) -> list[float]:
    own = [step(*batch) for batch in batches]
    return [float(torch.stack([loss.detach() for loss in parts]).mean()) for parts in own if len(parts) > 0]


def _timed(step: Step, task: Task, batches: list[Any]) -> float:
    """Seconds from when all are ready to when all have done."""
    _meet()
    begun_s = time.perf_counter()
    for number in range(task.steps):
        step(*batches[(task.warm_up + number) % len(batches)])
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    _meet()
    return time.perf_counter() - begun_s


def _meet() -> None:
    if distributed.is_initialized():
        distributed.barrier()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
