"""Callbacks of the trainer: one fills the run's folder, one shows how far the run is.

Use them with any transformers Trainer: ``callbacks=[RunFolderCallback(), ProgressCallback()]``.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lepo_kernels.report.curves import plot_curves
from lepo_kernels.report.run_folder import CURVES, RunFolder

_MIN_SECONDS_BETWEEN_PICTURES = 10.0

# What the progress shows: its name there -> the metric.
SHOWN = {"reward": "reward", "accuracy": "eval_greedy_accuracy"}


class RunFolderCallback(TrainerCallback):
    """Writes ``config.yaml``, ``metrics.jsonl`` and ``curves.png`` into ``output_dir``.

    A resumed run goes on with its files as they were at the checkpoint; a new run that starts in
    the same folder starts new files.

    Args:
        config: the settings to write; None writes all of the trainer's arguments.
        title: stands above the curves.
    """

    def __init__(self, config: dict[str, Any] | None = None, title: str = "") -> None:
        self.config = config
        self.title = title
        self._last_picture = 0.0

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
        """Draw the curves of what is recorded so far."""
        if folder.metrics_file.exists():
            plot_curves(folder.metrics_file, folder.folder / CURVES, self.title)
        self._last_picture = time.monotonic()


class ProgressCallback(TrainerCallback):
    """Shows the step, the reward, the held-out accuracy, and the time gone and left.

    A moving bar on a terminal; elsewhere a plain line per log. Replaces transformers' own
    progress and printing callbacks.

    Args:
        console: where to write; None takes standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console() if console is None else console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown: dict[str, str] = {}
        self._start = 0.0
        self._first_step = 0
        self._paused = 0.0
        self._evaluation_start: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock and the bar."""
        self._start, self._first_step, self._paused = time.monotonic(), state.global_step, 0.0
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=self.console,
        )
        self._task = self._bar.add_task(
            "training", total=state.max_steps, completed=state.global_step, values=""
        )
        self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        self._show(state)

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
        if not state.is_world_process_zero:
            return
        if self._bar is None and not logs.keys().isdisjoint(SHOWN.values()):
            line = f"step {state.global_step}/{state.max_steps}  {self._values(state)}"
            self.console.print(line, highlight=False)
        self._show(state)

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
        """Show how far an evaluation is; its time does not count as training time."""
        now = time.monotonic()
        if self._evaluation_start is None:
            self._evaluation_start = now
        if self._bar is not None and self._task is not None:
            text = f"evaluating {done}/{total}" if done < total else "training"
            self._bar.update(self._task, description=text)
        if done >= total:
            self._paused += now - self._evaluation_start
            self._evaluation_start = None

    def _show(self, state: TrainerState) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step, values=self._values(state))

    def _values(self, state: TrainerState) -> str:
        gone = time.monotonic() - self._start
        steps = state.global_step - self._first_step
        left = "?"
        if steps > 0:
            left = clock((gone - self._paused) / steps * (state.max_steps - state.global_step))
        shown = [f"{name} {self._shown[name]}" for name in SHOWN if name in self._shown]
        return "  ".join([*shown, f"elapsed {clock(gone)}", f"left {left}"])


def clock(seconds: float) -> str:
    """A duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
