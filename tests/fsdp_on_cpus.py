"""`accelerate launch fsdp_on_cpus.py JOBS`: runs of gavel one after another, with FSDP on CPU processes.

accelerate leaves FSDP out where its processes are on CPUs. Here it is told that they are on GPUs once it has
given them their devices; the rest, FSDP2 and its collectives over gloo, is as it comes.

JOBS is a file: a list of {"arguments": […], "stop_after": STEP}; with a step, a run is stopped after it (PPO:
after that iteration) as by Ctrl-C. Exit codes go to JOBS.codes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from gavel.cli import main
from train.callbacks import Checkpoints
from train.ppo_log import Log

_begin, _step_ends, _iteration_ends = AcceleratorState.__init__, Checkpoints.on_step_end, Log.end


def _begin_as_on_gpus(self: Any, *args: Any, **settings: Any) -> None:
    known = PartialState._shared_state
    if known.get("distributed_type") == DistributedType.MULTI_CPU:
        known["distributed_type"] = DistributedType.MULTI_GPU
    _begin(self, *args, **settings)


def _stop_after(step: int) -> None:
    def on_step_end(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.stop_requested |= state.global_step == step
        _step_ends(self, args, state, control, **others)

    def end(self: Any, iteration: int, *given: Any) -> None:
        self.stop_requested |= iteration + 1 == step
        _iteration_ends(self, iteration, *given)

    Checkpoints.on_step_end, Log.end = on_step_end, end


if __name__ == "__main__":
    AcceleratorState.__init__ = _begin_as_on_gpus
    codes = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        _stop_after(job.get("stop_after", -1))
        code = 0
        sys.argv[1:], jobs = job["arguments"], sys.argv[1]
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        sys.argv[1:] = [jobs]
        codes.append(code)
    if PartialState().is_main_process:
        Path(f"{sys.argv[1]}.codes").write_text(json.dumps(codes))
