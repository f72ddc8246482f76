"""``lepo train``: evaluate, train, evaluate again, and leave everything in the run's folder."""

import contextlib
import dataclasses
import errno
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TqdmCallback

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.loading import (
    evaluation_task,
    from_pretrained_options,
    model_name,
    task_options,
    task_seed,
    training_task,
)
from lepo_kernels.cli.options import ModelOptions, TaskOptions, TrainOptions
from lepo_kernels.cli.parsing import Parsed, mapping, parse
from lepo_kernels.cli.requirements import check_requirements
from lepo_kernels.cli.resuming import how_to_resume
from lepo_kernels.cli.run_results import show_results
from lepo_kernels.cli.run_start import LATEST, described, find_start, refuse_changes
from lepo_kernels.console import make_console, say
from lepo_kernels.report.callbacks import ProgressCallback, RunFolderCallback, clock
from lepo_kernels.report.run_folder import CONFIG, CURVES, RunFolder
from lepo_kernels.report.run_lock import FolderInUseError
from lepo_kernels.tasks import Task
from lepo_kernels.trainer.checkpoint import find_checkpoint
from lepo_kernels.trainer.checkpoint_saving import CheckpointError
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.processes import (
    alone_in_folder,
    first_process_decides,
    process_group_ends,
)
from lepo_kernels.trainer.trainer import LEPOTrainer

# Settings of TrainingArguments that --help shows; it leaves out the many others.
SHOWN = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "gradient_checkpointing",
    "bf16",
    "use_cpu",
    "seed",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "logging_steps",
    "report_to",
    "resume_from_checkpoint",
)


def run(words: list[str]) -> None:
    """Train as the options say.

    Raises:
        UsageError: an option is wrong, the model or its adapter cannot be loaded, another run uses
            the folder, or a checkpoint cannot be written.
        TaskError: the task cannot be loaded.
        RunEnded: SIGTERM or SIGHUP ended it; a SystemExit with status 128 + the signal's number.
    """
    with process_group_ends(), contextlib.ExitStack() as until_the_end:
        try:
            _run(words, until_the_end)
        except (FolderInUseError, CheckpointError) as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" for {error.filename}" if error.filename else ""
            raise UsageError(f"output_dir: {error.strerror}{where}") from error


def _run(words: list[str], until_the_end: contextlib.ExitStack) -> None:
    start = time.monotonic()
    begin = find_start(words)
    parsed = parse(
        "train",
        (ModelOptions, TaskOptions, TrainOptions, LEPOConfig),
        words,
        saved=begin.saved,
        defaults=_defaults(),
        hidden=_hidden(),
    )
    model_options, tasks, options, args = parsed.options
    check_requirements(args)
    tasks = task_options(parsed, tasks)
    args.output_dir, args.resume_from_checkpoint = str(begin.folder), begin.resume
    folder = RunFolder(args.output_dir)
    # From before anything is removed to after all is saved.
    until_the_end.enter_context(alone_in_folder(args))
    resume = _checkpoint(args, folder)
    if resume is None and folder.holds_a_run() and not options.overwrite_output_dir:
        raise UsageError(
            f"output_dir: {folder.folder} holds an earlier run; resume it "
            "(--resume_from_checkpoint latest), replace it (--overwrite_output_dir), "
            "or name another folder"
        )
    settings = _settings(parsed, tasks, args)
    console = make_console(quiet=args.process_index != 0)
    if begin.note:
        say(console, begin.note)
    if resume is not None:
        refuse_changes(Path(resume), begin, settings, args)
        say(console, described(Path(resume), begin, parsed))
    train_task = training_task(tasks, args.seed)
    eval_task = train_task if tasks.eval_task is None else evaluation_task(tasks, args.seed)
    if "eval_on_start" not in parsed.given:
        # What a resumed run was before is in its folder.
        args.eval_on_start = resume is None and len(eval_task.eval_dataset) > 0

    progress = ProgressCallback(console)
    title = f"{model_options.model} on {train_task.name}"
    recorder = RunFolderCallback(settings, title)
    trainer = _make_trainer(
        model_options, options, args, train_task, eval_task, [recorder, progress], console
    )
    trainer.evaluation_progress, trainer.activity = progress.evaluation, progress.activity
    trainer.task_settings = {
        **dataclasses.asdict(tasks),
        "task_params": mapping("task_params", tasks.task_params),
        "task_seed": task_seed(tasks, args.seed),
    }
    _announce(console, trainer, title, train_task, eval_task)
    # Only now: nothing that is wrong with the settings may cost an earlier run.
    if resume is None and trainer.is_world_process_zero():
        folder.clear()
    try:
        trainer.train(resume_from_checkpoint=resume)
        # Before the evaluation, which a kill may end.
        trainer.save_model()
        if len(eval_task.eval_dataset) > 0 and not _was_evaluated(trainer):
            trainer.evaluate()
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(how_to_resume(folder)) from interrupt
    finally:
        with contextlib.suppress(OSError):  # a terminal that is gone
            progress.close()
    if trainer.is_world_process_zero():
        recorder.draw(folder)
        show_results(console, folder, eval_task, options.show_samples)
        gone = clock(time.monotonic() - start)
        say(
            console,
            f"Done in {gone}. {folder.folder} holds the model, {CONFIG}, metrics.jsonl, {CURVES}, "
            "completions.jsonl and evaluations.jsonl",
        )


def _defaults() -> dict[str, Any]:
    """On a GPU that can, train in bfloat16 (with float32 weights) unless set otherwise."""
    import torch

    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {"bf16": True} if on_gpu else {}


def _hidden() -> tuple[str, ...]:
    """The settings that ``--help`` leaves out."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return tuple(inherited - set(SHOWN))


def _checkpoint(args: LEPOConfig, folder: RunFolder) -> str | None:
    """The checkpoint to resume from; None for a new run."""
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return None
    try:
        found = first_process_decides(
            args, lambda: find_checkpoint(folder.folder, True if wanted == LATEST else wanted)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return str(found)


def _make_trainer(
    model_options: ModelOptions,
    options: TrainOptions,
    args: LEPOConfig,
    train_task: Task,
    eval_task: Task,
    callbacks: list[Any],
    console: Console,
) -> LEPOTrainer:
    args.model_init_kwargs = {
        **from_pretrained_options(model_options, auto="float32"),
        **mapping("model_init_kwargs", args.model_init_kwargs),
    }
    peft_config = _adapter(options)
    name = model_name(model_options, console)
    try:
        trainer = LEPOTrainer(
            model=name,
            reward_funcs=train_task.reward_funcs,
            args=args,
            train_dataset=train_task.train_dataset,
            eval_dataset=eval_task.eval_dataset if len(eval_task.eval_dataset) else None,
            callbacks=callbacks,
            peft_config=peft_config,
        )
    # Wrong settings and models that are not there; what goes wrong later is no usage error.
    except (OSError, TypeError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    for replaced in (TqdmCallback, PrinterCallback):
        trainer.remove_callback(replaced)
    return trainer


def _adapter(options: TrainOptions) -> Any:
    """The LoRA adapter that the options ask for; None without one."""
    if options.lora_r == 0:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UsageError(
            "lora_r: an adapter needs the package peft; run: pip install 'lepo_kernels[peft]'"
        ) from error
    targets = options.lora_target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=2 * options.lora_r if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear" if targets in (None, ["all-linear"]) else targets,
    )


def _settings(parsed: Parsed, tasks: TaskOptions, args: LEPOConfig) -> dict[str, Any]:
    """What ``config.yaml`` holds: LEPO's own settings, and whatever else was set.

    Given to ``lepo train`` again, it makes the same run; `lepo eval` and `lepo generate` read it.
    """
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {
        field.name: getattr(part, field.name)
        for part in parsed.options
        for field in dataclasses.fields(part)
        if field.name not in inherited
    }
    settings = {
        **own,
        **parsed.given,
        **dataclasses.asdict(tasks),
        # Written down, so that an evaluation with another seed has the same held-out problems.
        "task_seed": task_seed(tasks, args.seed),
        "output_dir": args.output_dir,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
    }
    # A secret, and what belongs to this call alone.
    for name in ("hub_token", "resume_from_checkpoint", "overwrite_output_dir"):
        settings.pop(name, None)
    return settings


def _announce(
    console: Console, trainer: LEPOTrainer, title: str, train_task: Task, eval_task: Task
) -> None:
    weights = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    args = trainer.args
    train_size = 0 if train_task.train_dataset is None else len(train_task.train_dataset)
    say(
        console,
        f"Training {title}: {weights / 1e6:.1f}M weights on {args.device} "
        f"({'bfloat16' if args.bf16 else 'float16' if args.fp16 else 'float32'}), "
        f"{args.latent_length} latent steps, groups of {args.num_generations}; "
        f"{train_size} problems, {len(eval_task.eval_dataset)} held out ({eval_task.name})",
    )


def _was_evaluated(trainer: LEPOTrainer) -> bool:
    """Whether the evaluation of the last step has been done already."""
    history = trainer.state.log_history
    last = trainer.state.global_step
    return any(log["step"] == last and "eval_runtime" in log for log in history)
