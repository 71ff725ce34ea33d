"""What happens beside the training steps: metrics, progress, checkpoints, stopping."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from gavel.command import say
from gavel.rundir import JsonlWriter
from train import group
from train.output import Output

_CHECKPOINT_S = 300.0  # between checkpoints, unless steps are counted
_LAST_CHECKPOINT_S = 60.0  # unsaved work that is worth one right before the model is saved
SAY_S = 30.0  # between lines where there is no terminal


_RESTARTED = {"num_tokens"}  # TRL counts anew after a resume


class Metrics(TrainerCallback):  # type: ignore[misc]
    """Appends every log step to metrics.jsonl."""

    def __init__(self, output: Output) -> None:
        self._writer = JsonlWriter(output.metrics_path) if group.is_main() else None
        self._said = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # however short the run, its end is measured
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs:  # the closing line about run time
            return
        kept = {k: _number(v) for k, v in logs.items() if k not in _RESTARTED}
        if self._writer is not None:
            line = {"step": state.global_step, **kept}
            self._writer.append_line(json.dumps(line).encode() + b"\n")
        if time.monotonic() - self._said > SAY_S and not sys.stderr.isatty():
            self._said = time.monotonic()
            say(f"step {state.global_step}/{state.max_steps}: loss {logs['loss']:.4g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._writer is not None:
            self._writer.close()


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class Bar(ProgressCallback):  # type: ignore[misc]
    """A progress bar on standard error and nothing on standard output."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4g}", refresh=False)


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint every five minutes (or every `save_steps`) and at a stop, and marks it
    once it is whole."""

    def __init__(self, output: Output, save_steps: int) -> None:
        self._output = output
        self._save_steps = save_steps
        self._saved = time.monotonic()
        self.stop_requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop_requested = group.any_of(self.stop_requested)
        control.should_save |= checkpoint_due(
            state.global_step, state.max_steps, self._save_steps, self._saved
        )
        if self.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._output.mark_whole(state.global_step)
        self._saved = time.monotonic()


def checkpoint_due(step: int, steps: int, every: int, saved: float) -> bool:
    """Whether it is time for a checkpoint, on all processes alike.

    Args:
        step, steps: done, and in all. every: steps between checkpoints, 0: five minutes. saved: when the last
            one was, by the monotonic clock.
    """
    unsaved_s = group.of_main(time.monotonic() - saved)
    if step >= steps:
        return unsaved_s > _LAST_CHECKPOINT_S  # in case saving the model is interrupted
    return step % every == 0 if every else unsaved_s > _CHECKPOINT_S


class Stoppable(Protocol):
    """What looks at `stop_requested` after each step."""

    stop_requested: bool


@contextlib.contextmanager
def stopping(checkpoints: Stoppable) -> Iterator[None]:
    """SIGINT and SIGTERM end training after the step under way, with a checkpoint, then raise
    KeyboardInterrupt; a second signal raises it at once."""
    before: dict[signal.Signals, Any] = {}

    def stop(signum: int, frame: object) -> None:
        if checkpoints.stop_requested:
            raise KeyboardInterrupt
        checkpoints.stop_requested = True
        say("stopping after this step; a checkpoint is saved (again to stop at once)")

    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if checkpoints.stop_requested:
        raise KeyboardInterrupt
