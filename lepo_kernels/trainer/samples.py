"""The completions of a run on disk, one JSON line each, and as a table on the terminal."""

import json
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from lepo_kernels.console import as_text, make_console
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

    def write(self, collected: Collected, step: int) -> None:
        """Append the completions of a rollout that the update after ``step`` trains on."""
        self._latest = [
            {
                "step": step,
                "prompt": prompt_text(self.tokenizer, collected.prompts[index]),
                "completion": text,
                "latent": latent_steps(self.tokenizer, collected.rollout, index),
                "rewards": self._named_rewards(collected.rewards[index].tolist()),
                "advantage": float(collected.advantages[index]),
            }
            for index, text in enumerate(collected.texts)
        ]
        self._append("completions.jsonl", self._latest)

    def write_evaluation(self, result: EvaluationResult, step: int, prefix: str) -> None:
        """Append the completions of an evaluation."""
        rows = [{"step": step, "evaluation": prefix, **record} for record in result.records]
        self._append("evaluations.jsonl", rows)

    def print_table(self, rows: int) -> None:
        """Print the first ``rows`` completions of the last rollout."""
        table = Table(title="completions", show_lines=True)
        for column in ("prompt", "latent", "completion", *self.reward_names, "advantage"):
            table.add_column(as_text(column))
        for row in self._latest[:rows]:
            rewards = [str(row["rewards"][name]) for name in self.reward_names]
            steps = " ".join(step[0]["token"] for step in row["latent"] if step)
            cells = (row["prompt"][-200:], steps, row["completion"], *rewards)
            table.add_row(*map(as_text, cells), f"{row['advantage']:.2f}")
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
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
