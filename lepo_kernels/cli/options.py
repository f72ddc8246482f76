"""The options of the commands, besides those of `LEPOConfig`."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lepo_kernels.tasks.sources import SOURCES
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.model_settings import EVALUATION, SAMPLING


@dataclass
class ModelOptions:
    """Which model, and how it is loaded."""

    model: str | None = field(
        default=None,
        metadata={"help": "smollm2-135m-instruct (built in), a hub id, or a folder."},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Dtype of the weights: float32, bfloat16, float16, or auto: float32 for "
            "training and on the CPU, else bfloat16."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in from_pretrained: sdpa, flash_attention_2, ..."}
    )


@dataclass
class TaskOptions:
    """Which problems."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "reasoning_gym:NAME (any of its generators), "
            f"{', '.join(SOURCES)} (problems of your own)."
        },
    )
    task_params: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The task's own parameters, a mapping (JSON)."}
    )
    eval_task: str | None = field(
        default=None, metadata={"help": "Task to evaluate on; default the task's held-out part."}
    )
    eval_task_params: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Parameters of eval_task, a mapping (JSON)."}
    )
    train_size: int | None = field(
        default=None, metadata={"help": "Number of training problems; default the task's."}
    )
    eval_size: int | None = field(
        default=None, metadata={"help": "Number of held-out problems; default the task's."}
    )
    task_seed: int | None = field(
        default=None,
        metadata={"help": "Seed that draws and splits the problems; default the run's seed."},
    )


@dataclass
class TrainOptions:
    """How ``lepo train`` goes about it."""

    lora_r: int = field(
        default=0, metadata={"help": "Rank of a LoRA adapter (needs peft); 0 trains all weights."}
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Scale of the adapter; default twice lora_r."}
    )
    lora_dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout of the adapter; acts only with --disable_dropout false."},
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules with an adapter; default all linear ones."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the run that output_dir holds."}
    )
    show_samples: int = field(
        default=4, metadata={"help": "Completions to show at the end, before beside after."}
    )


@dataclass
class GenerateOptions:
    """What ``lepo generate`` completes and shows."""

    prompt: str | None = field(default=None, metadata={"help": "What the user says."})
    system_prompt: str | None = field(
        default=None,
        metadata={"help": "The system turn before it; default the one that training used."},
    )
    prompt_format: str | None = field(
        default=None,
        metadata={
            "help": "chat or text; default as in training, or else chat where the tokenizer has a "
            "chat template."
        },
    )
    greedy: bool = field(
        default=False,
        metadata={"help": "Noise-free mixtures, then the likeliest tokens, instead of sampling."},
    )
    num_samples: int = field(default=1, metadata={"help": "Completions to draw."})
    show_tokens: int = field(default=5, metadata={"help": "Tokens to show per soft step."})


@dataclass
class EvalOptions:
    """What ``lepo eval`` evaluates, and where it writes."""

    tasks: list[str] | None = field(
        default=None,
        metadata={"help": "Tasks to evaluate on, one after the other; default the task's own."},
    )
    tasks_params: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Parameters of these, a mapping from a task's name to a mapping (JSON)."},
    )
    latent_lengths: list[str] | None = field(
        default=None,
        metadata={"help": "Latent lengths to evaluate with, such as 0,8,32; default the model's."},
    )
    ablate: list[str] | None = field(
        default=None,
        metadata={
            "help": "Answers on top of ablated latents, too: shuffle (another problem's), blank "
            "(a blank token's embedding), argmax (the heaviest token's), last_only (the others "
            "removed)."
        },
    )
    ablate_blank: str = field(
        default=" ", metadata={"help": "Text of the one token that --ablate blank takes."}
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file for metrics and completions, with a table (.md) and a picture "
            "(.png) beside it; default none. While the evaluation runs, finished samples are kept "
            "beside it, and the same command resumes from them."
        },
    )
    restart: bool = field(
        default=False,
        metadata={"help": "Drop the finished samples of an evaluation that was broken off."},
    )


def part_of_config(name: str, names: tuple[str, ...]) -> type:
    """A dataclass of some of `LEPOConfig`'s settings, with their types, defaults and help."""
    chosen = [setting for setting in dataclasses.fields(LEPOConfig) if setting.name in names]
    return dataclasses.make_dataclass(
        name,
        [
            (
                setting.name,
                setting.type,
                field(
                    default=setting.default,
                    default_factory=setting.default_factory,
                    metadata=setting.metadata,
                ),
            )
            for setting in chosen
        ],
    )


# What belongs to the machine, not to the model.
_MACHINE = ("use_cpu", "rollout_engine")
SamplingOptions = part_of_config("SamplingOptions", SAMPLING + _MACHINE)
EvaluationOptions = part_of_config("EvaluationOptions", SAMPLING + EVALUATION + _MACHINE)

ALL = (ModelOptions, TaskOptions, TrainOptions, GenerateOptions, EvalOptions, LEPOConfig)
