"""The completions of a run on disk, one JSON line each, and as a table on the terminal."""

import math
from pathlib import Path
from typing import Any

from rich.table import Table

from lepo_kernels.console import as_text, make_console
from lepo_kernels.report.json_text import json_text
from lepo_kernels.report.run_folder import open_log
from lepo_kernels.trainer.collect import Collected
from lepo_kernels.trainer.evaluation import EvaluationResult
from lepo_kernels.trainer.prompts import latent_steps, prompt_text


class SampleLog:
    """Writes ``completions.jsonl`` and ``evaluations.jsonl`` into a run's folder.

    Args:
        folder: the run's folder.
        tokenizer: decodes latent steps.
        reward_names: one per reward function.
    """

    def __init__(self, folder: Path, tokenizer: Any, reward_names: list[str]) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.reward_names = reward_names
        self._latest: list[dict[str, Any]] = []
        self._extra: list[str] = []

    def write(self, collected: Collected, step: int) -> None:
        """Append the completions of a rollout that the update after ``step`` trains on."""
        self._extra = list(collected.extra)
        self._latest = [
            {
                "step": step,
                "prompt": prompt_text(self.tokenizer, collected.rewarded.prompts[index]),
                "completion": text,
                "latent": latent_steps(self.tokenizer, collected.rollout, index),
                "rewards": self._named_rewards(collected.rewarded.rewards[index].tolist()),
                "advantage": float(collected.advantages[index]),
                **{name: values[index] for name, values in collected.extra.items()},
            }
            for index, text in enumerate(collected.rewarded.texts)
        ]
        self._append("completions.jsonl", self._latest)

    def write_evaluation(self, result: EvaluationResult, step: int, prefix: str) -> None:
        """Append the completions of an evaluation."""
        rows = [{"step": step, "evaluation": prefix, **record} for record in result.records]
        self._append("evaluations.jsonl", rows)

    def print_table(self, rows: int) -> None:
        """Print the first ``rows`` completions of the last rollout."""
        table = Table(title="completions", show_lines=True)
        columns = ("prompt", "latent", "completion", *self.reward_names, "advantage", *self._extra)
        for column in columns:
            table.add_column(as_text(column))
        for row in self._latest[:rows]:
            rewards = [str(row["rewards"][name]) for name in self.reward_names]
            steps = " ".join(step[0]["token"] for step in row["latent"] if step)
            extra = [str(row[name]) for name in self._extra]
            advantage = f"{row['advantage']:.2f}"
            cells = (row["prompt"][-200:], steps, row["completion"], *rewards, advantage, *extra)
            table.add_row(*map(as_text, cells))
        make_console().print(table)

    def _named_rewards(self, values: list[float]) -> dict[str, float | None]:
        return {
            name: None if math.isnan(value) else value
            for name, value in zip(self.reward_names, values, strict=True)
        }

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_log(self.folder / name) as file:
            for row in rows:
                file.write(json_text(row) + "\n")
