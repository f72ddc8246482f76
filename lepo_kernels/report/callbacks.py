"""Callbacks of the trainer: one fills the run's folder, one shows how far the run is.

Use them with any transformers Trainer: ``callbacks=[RunFolderCallback(), ProgressCallback()]``.
"""

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lepo_kernels import extras
from lepo_kernels.console import as_text, make_console, say, shows_progress
from lepo_kernels.report.curves import plot_curves
from lepo_kernels.report.run_folder import CURVES, RunFolder

_MIN_SECONDS_BETWEEN_PICTURES = 10.0
# A step of a rollout takes milliseconds: it moves the bar now and then, and where there is none it
# says a line now and then that the run is alive.
_MIN_SECONDS_BETWEEN_MOVES = 0.1
_MIN_SECONDS_BETWEEN_LINES = 60.0

# What the progress shows: its name there -> the metric.
SHOWN = {"reward": "reward", "accuracy": "eval_greedy_accuracy"}


class RunFolderCallback(TrainerCallback):
    """Writes ``config.yaml``, ``metrics.jsonl`` and ``curves.png`` into ``output_dir``.

    A resumed run continues its files as they were at the checkpoint; a new run that starts in
    the same folder starts new files.

    Args:
        config: the settings to write; None writes all of the trainer's arguments.
        title: stands above the curves.
    """

    def __init__(self, config: dict[str, Any] | None = None, title: str = "") -> None:
        self.config = config
        self.title = title
        self._last_picture = 0.0
        self._has_warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write the settings and bring the files to the step the run starts from."""
        if not state.is_world_process_zero:
            return
        folder = RunFolder(str(args.output_dir))
        folder.forget_after(state.global_step if state.global_step > 0 else -1)
        folder.write_config(args.to_dict() if self.config is None else self.config)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add a line of metrics, and redraw the curves now and then."""
        if not state.is_world_process_zero or not logs:
            return
        folder = RunFolder(str(args.output_dir))
        folder.append_metrics({"step": state.global_step, **logs})
        if time.monotonic() - self._last_picture >= _MIN_SECONDS_BETWEEN_PICTURES:
            self.draw(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Draw the curves a last time."""
        if state.is_world_process_zero:
            self.draw(RunFolder(str(args.output_dir)))

    def draw(self, folder: RunFolder) -> None:
        """Draw the curves of what is recorded so far; where that fails, the run continues."""
        try:
            if folder.metrics_file.exists():
                with extras.explained():
                    plot_curves(folder.metrics_file, folder.folder / CURVES, self.title)
        # No picture is worth a run, whatever is wrong with it.
        except Exception as error:
            if not self._has_warned:
                logging.getLogger(__name__).warning(
                    "%s: could not be drawn, the run continues: %s", folder.folder / CURVES, error
                )
            self._has_warned = True
        self._last_picture = time.monotonic()


class ProgressCallback(TrainerCallback):
    """Shows the step, the reward, the held-out accuracy, and the time gone and left.

    A moving bar on a terminal, with the activity within the step; elsewhere a plain line per
    log, and one a minute during a long rollout or evaluation. Replaces transformers' own progress
    and printing callbacks. `LEPOTrainer` calls `evaluation` and `activity` where they are set as
    its ``evaluation_progress`` and ``activity``.

    Args:
        console: where to write; None takes standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = make_console() if console is None else console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._state: TrainerState | None = None
        self._shown: dict[str, str] = {}
        self._start = 0.0
        self._first_step = 0
        self._paused = 0.0
        self._evaluation_start: float | None = None
        self._evaluated = ""
        self._last_move = self._last_line = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock and the bar."""
        self._start, self._first_step, self._paused = time.monotonic(), state.global_step, 0.0
        self._last_line = self._start
        if not state.is_world_process_zero:
            return
        self._state = state
        if not shows_progress(self.console):
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Values(self),
            console=self.console,
        )
        self._task = self._bar.add_task(
            "training", total=state.max_steps, completed=state.global_step
        )
        self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        self._state = state if state.is_world_process_zero else None
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take up the newest reward and accuracy."""
        logs = logs or {}
        for name, metric in SHOWN.items():
            if metric in logs:
                self._shown[name] = f"{logs[metric]:.3f}"
        self._state = state if state.is_world_process_zero else None
        if self._bar is None and not logs.keys().isdisjoint(SHOWN.values()):
            self._say("", time.monotonic())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; to be called when training fails, too."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def evaluation(self, done: int, total: int) -> None:
        """Show how many completions of an evaluation are done; it is not training time."""
        now = time.monotonic()
        if self._evaluation_start is None:
            self._evaluation_start = now
        self._evaluated = f"evaluating {done}/{total}" if done < total else ""
        self._show(self._evaluated or "training", now, at_once=True)
        if done >= total:
            self._paused += now - self._evaluation_start
            self._evaluation_start = None

    def activity(self, what: str, done: int, total: int) -> None:
        """Show the activity within a step.

        Args:
            what: "rollout" or "evaluation", whose decoding steps are counted, or the name of
                another part of the work.
            done: decoding steps done; a rollout whose rows have all ended has fewer than
                ``total``.
            total: decoding steps at most; 0 where nothing is counted.
        """
        now = time.monotonic()
        counted = f" {done}/{total}" if total else ""
        if what == "evaluation":
            if self._evaluation_start is None:
                self._evaluation_start = now
            text = f"{self._evaluated or 'evaluating'}, step{counted}"
        else:
            text = f"{what}{counted}"
        self._show(text, now, at_once=done == 0 or done >= total)

    def _show(self, text: str, now: float, at_once: bool) -> None:
        """Show what is going on: beside the bar, or as a line of its own now and then."""
        if self._bar is None:
            if now - self._last_line >= _MIN_SECONDS_BETWEEN_LINES:
                self._say(f"  {text}", now)
        elif self._task is not None and (
            at_once or now - self._last_move >= _MIN_SECONDS_BETWEEN_MOVES
        ):
            self._last_move = now
            self._bar.update(self._task, description=text)

    def _say(self, text: str, now: float) -> None:
        """Print a plain line; on the first process alone."""
        state = self._state
        if state is not None:
            self._last_line = now
            line = f"step {state.global_step}/{state.max_steps}{text}  {self.values(state, now)}"
            say(self.console, line)

    def values(self, state: TrainerState, now: float) -> str:
        """The newest reward and accuracy, and the time gone and left at ``now``."""
        gone = now - self._start
        steps = state.global_step - self._first_step
        left = "?"
        if steps > 0:
            left = clock((gone - self._paused) / steps * (state.max_steps - state.global_step))
        shown = [f"{name} {self._shown[name]}" for name in SHOWN if name in self._shown]
        return "  ".join([*shown, f"elapsed {clock(gone)}", f"left {left}"])

    def values_now(self) -> str:
        """See `values`; empty before training starts."""
        return "" if self._state is None else self.values(self._state, time.monotonic())


class _Values(ProgressColumn):
    """The values of a `ProgressCallback` at every refresh, so that the clock never stands still."""

    def __init__(self, callback: ProgressCallback) -> None:
        # One line, however narrow: a bar of two lines flickers.
        super().__init__(table_column=Column(no_wrap=True))
        self.callback = callback

    def render(self, task: Task) -> Text:
        return as_text(self.callback.values_now())


def clock(seconds: float) -> str:
    """A duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
