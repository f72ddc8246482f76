"""What can be wrong with a dataset: found before any work starts, reported with the row's number.

`check_dataset` needs nothing but the dataset and looks at its form; `check_prompts` renders and
tokenises every prompt as a rollout will, so that no row can stop a run that has started.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lepo_kernels.trainer.model_limits import ModelLimits
from lepo_kernels.trainer.prompts import cut_prompt, ids_of_texts, prompt_fault, prompt_text
from lepo_kernels.trainer.rewards import ALWAYS_GIVEN, GIVEN_ON_REQUEST, Rewards

# Rows that are read, rendered and tokenised together.
_AT_ONCE = 1000
_SECONDS_BETWEEN_NOTES = 10.0
_logger = logging.getLogger(__name__)


def check_dataset(
    name: str, dataset: Any, rewards: Rewards | None = None, *, several: bool = False
) -> None:
    """Check the form of a dataset: its container, its columns, and the prompt of every row.

    A dataset is a ``datasets.Dataset``, a list of dicts, or any object with a length and rows by
    number; each row a dict with a ``prompt``, which is text or a list of chat messages, each with a
    ``role`` and text as ``content`` (which a message with ``tool_calls`` may lack).

    Args:
        name: what to call it in messages.
        dataset: what to check; None is fine.
        rewards: the reward functions, which must be callable with its columns.
        several: whether it may be a dict of datasets.

    Raises:
        TypeError: a container of another kind, a prompt that is neither text nor messages, or a
            reward function that its columns do not fit.
        ValueError: it is empty, a row lacks a column, a column has the name of another argument of
            reward functions, or a prompt is empty or holds what no tokenizer can read.
    """
    if dataset is None:
        return
    if several and isinstance(dataset, dict):
        if not dataset:
            raise ValueError(f"{name}: has no datasets")
        for key, part in dataset.items():
            check_dataset(f"{name}[{key!r}]", part, rewards)
        return
    _check_container(name, dataset)
    if len(dataset) == 0:
        raise ValueError(f"{name}: has no rows")
    columns = _check_columns(name, dataset)
    if rewards is not None:
        rewards.check_columns(name, [column for column in columns if column != "prompt"])
    for start, prompts in _prompt_batches(name, dataset, columns):
        for index, prompt in enumerate(prompts, start):
            fault = prompt_fault(prompt)
            if fault is not None:
                raise type(fault)(f"{name}: the prompt of row {index} {fault}")


def check_prompts(name: str, dataset: Any, tokenizer: Any, limits: ModelLimits) -> None:
    """Check that the tokenizer can write every prompt, and that the model has room for it.

    Args:
        name: what to call the dataset in messages.
        dataset: one that `check_dataset` accepts, or None.
        tokenizer: the tokenizer of the run.
        limits: what the model and the settings allow.

    Raises:
        ValueError: naming the first row whose prompt the chat template refuses (or cannot be
            rendered, for want of a template), that has no tokens, more than ``max_prompt_length``
            (unless they are cut to it, which is logged),
            an id that the model has no embedding for, or no room for a completion in a model with
            a table of positions. A model that computes its positions (rotary ones) is warned of.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_prompts(f"{name}[{key!r}]", part, tokenizer, limits)
        return
    if dataset is None:
        return
    longest, longest_row, cut = 0, 0, 0
    noted = time.monotonic()
    for start, prompts in _prompt_batches(name, dataset, dataset[0].keys()):
        texts = [_rendered(name, row, tokenizer, p) for row, p in enumerate(prompts, start)]
        special = [isinstance(prompt, str) for prompt in prompts]
        for row, whole in enumerate(ids_of_texts(tokenizer, texts, special), start):
            ids = cut_prompt(whole, limits.max_prompt_length) if limits.truncate_prompts else whole
            cut += len(ids) < len(whole)
            fault = _fault_of_ids(ids, limits)
            if fault is not None:
                raise ValueError(f"{name}: the prompt of row {row} {fault}")
            if len(ids) > longest:
                longest, longest_row = len(ids), row
        if time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
            noted = time.monotonic()
            _logger.warning(
                "%s: checked %d of %d prompts", name, start + len(prompts), len(dataset)
            )
    if cut:
        _logger.warning(
            "%s: %d of %d prompts are cut from the left to max_prompt_length = %d tokens",
            name,
            cut,
            len(dataset),
            limits.max_prompt_length,
        )
    _check_positions(name, longest, longest_row, limits)


def _check_container(name: str, dataset: Any) -> None:
    kind = type(dataset).__name__
    if isinstance(dataset, str):
        raise TypeError(
            f"{name}: expected a dataset, got a str; load it first: "
            f"datasets.load_dataset({dataset!r}, split='train')"
        )
    if isinstance(dataset, Mapping):
        keys = ", ".join(map(repr, list(dataset)[:8]))
        raise TypeError(
            f"{name}: expected one dataset, got a {kind} with {keys}; give one split, such as "
            "dataset['train'], or columns as datasets.Dataset.from_dict(columns)"
        )
    if kind == "DataFrame" or hasattr(dataset, "iloc"):
        raise TypeError(
            f"{name}: expected a dataset, got a {kind}; convert it: "
            "datasets.Dataset.from_pandas(frame, preserve_index=False)"
        )
    streams = any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__)
    if streams or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"{name}: expected a dataset with a length and rows by number, got {kind}. A stream "
            "has neither, and a resumed run could not find its place in it; take what you need of "
            "it: datasets.Dataset.from_list(list(stream.take(10000)))"
        )


def _check_columns(name: str, dataset: Any) -> Any:
    first = dataset[0]
    if not isinstance(first, Mapping):
        raise TypeError(f"{name}: expected rows that are dicts, got {type(first).__name__}")
    columns = first.keys()
    for column in columns:
        if not isinstance(column, str):
            raise TypeError(f"{name}: expected columns named by str, got {column!r}")
    if "prompt" not in columns:
        raise ValueError(f"{name}: rows need a column 'prompt'; there are {', '.join(columns)}")
    for reserved in (*ALWAYS_GIVEN, *GIVEN_ON_REQUEST):
        if reserved in columns:
            raise ValueError(
                f"{name}: the column {reserved!r} would hide what reward functions are given "
                "under that name; rename it"
            )
    return columns


def _prompt_batches(name: str, dataset: Any, columns: Any) -> Iterator[tuple[int, list[Any]]]:
    """The prompts of all rows, some at once, each time with the number of the first."""
    size = len(dataset)
    is_table = hasattr(dataset, "select_columns") and dataset.format["type"] is None
    table = dataset.select_columns(["prompt"]) if is_table else None
    for start in range(0, size, _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, size))
        if table is not None:
            yield start, list(table[rows.start : rows.stop]["prompt"])
            continue
        prompts = []
        for index in rows:
            row = dataset[index]
            if not isinstance(row, Mapping) or row.keys() != columns:
                raise ValueError(f"{name}: row {index} has other columns than row 0")
            prompts.append(row["prompt"])
        yield start, prompts


def _rendered(name: str, row: int, tokenizer: Any, prompt: Any) -> str:
    if not isinstance(prompt, str) and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{name}: the prompt of row {row} is a chat, and the tokenizer has no chat template; "
            "set tokenizer.chat_template, or give prompts as text"
        )
    try:
        return prompt_text(tokenizer, prompt)
    # A template is a program of its own; it may raise anything.
    except Exception as error:
        raise ValueError(
            f"{name}: the chat template refuses the prompt of row {row}: {error}"
        ) from error


def _fault_of_ids(ids: list[int], limits: ModelLimits) -> str | None:
    if not ids:
        return "has no tokens"
    longest = limits.max_prompt_length
    if longest is not None and len(ids) > longest:
        return f"has {len(ids)} tokens, max_prompt_length is {longest}"
    if limits.vocabulary is not None and max(ids) >= limits.vocabulary:
        return (
            f"has the token id {max(ids)}, and the model has embeddings for {limits.vocabulary}; "
            "call model.resize_token_embeddings(len(tokenizer))"
        )
    if limits.has_table and limits.lacks_room(len(ids)):
        return limits.positions_fault(len(ids))
    return None


def _check_positions(name: str, longest: int, row: int, limits: ModelLimits) -> None:
    if limits.lacks_room(longest):
        _logger.warning(
            "%s: the prompt of row %d, the longest, %s. What the model does beyond is untrained.",
            name,
            row,
            limits.positions_fault(longest),
        )
