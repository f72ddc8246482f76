"""``lepo generate``: complete a prompt, and show each soft step as its tokens with weights."""

from dataclasses import replace
from typing import Any

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.loading import load_for_inference, task_options
from lepo_kernels.cli.options import GenerateOptions, ModelOptions, SamplingOptions, TaskOptions
from lepo_kernels.cli.parsing import Parsed, mapping, parse, peek
from lepo_kernels.cli.saved_settings import announce, model_settings
from lepo_kernels.console import as_text, make_console
from lepo_kernels.report.tables import soft_steps_table
from lepo_kernels.rollout.engine import RolloutRequest, make_rollout_engine
from lepo_kernels.tasks import instruction_of, system_prompt_of
from lepo_kernels.tasks.shots import instructed
from lepo_kernels.tasks.task import chat_prompt
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.prompts import answer_texts, encode_prompts, latent_steps
from lepo_kernels.trainer.servable import check_policy

FORMATS = ("chat", "text")
# Of a task, generating takes its system prompt and its instruction alone.
HIDDEN = ("eval_task", "eval_task_params", "train_size", "eval_size", "task_seed")


def run(words: list[str]) -> None:
    """Complete the prompt ``num_samples`` times.

    Raises:
        UsageError: an option is wrong, or the model cannot be loaded.
    """
    kinds = (GenerateOptions, ModelOptions, SamplingOptions, TaskOptions)
    saved = model_settings(peek("generate", words, ("model", "task")))
    parsed = parse("generate", kinds, words, saved=saved, hidden=HIDDEN)
    options, model_options, sampling, tasks = parsed.options
    options = replace(options, system_prompt=_system_prompt(parsed, options, tasks))
    if options.prompt is None:
        raise UsageError("prompt: missing; give one, such as --prompt 'What is 3 + 4?'")
    instruction = instruction_of(_task_params(parsed, tasks))
    options = replace(options, prompt=instructed(options.prompt, instruction))
    if options.num_samples < 1:
        raise UsageError(f"num_samples: expected at least 1, got {options.num_samples}")
    if options.prompt_format not in (None, *FORMATS):
        wanted = " or ".join(FORMATS)
        raise UsageError(f"prompt_format: expected {wanted}, got {options.prompt_format!r}")
    console = make_console()
    announce(console, model_options.model, saved, parsed)
    model, tokenizer = load_for_inference(model_options, sampling.use_cpu, console)
    try:
        config = generation_config(sampling, model, tokenizer)
        prompt = _as_prompt(tokenizer, options)
        check_policy(model, config, tokenizer, [{"prompt": prompt}], training=False)
        engine = make_rollout_engine(sampling.rollout_engine, model)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    config = replace(config, do_sample=not options.greedy)
    ids, mask = encode_prompts(tokenizer, [prompt])
    with console.status("generating ...") as status:
        request = RolloutRequest(
            ids.to(model.device), mask.to(model.device), config, options.num_samples, sampling.seed
        )
        rollout = engine.generate(
            request,
            progress=lambda done, total: status.update(f"generating {done}/{total} ..."),
        )
    for sample, text in enumerate(answer_texts(tokenizer, rollout)):
        if options.num_samples > 1:
            console.rule(f"sample {sample + 1}")
        steps = latent_steps(tokenizer, rollout, sample, options.show_tokens)
        if steps:
            console.print(soft_steps_table(steps))
        console.print(as_text(text.strip()))


def _system_prompt(parsed: Parsed, options: GenerateOptions, tasks: TaskOptions) -> str | None:
    """The system turn that was asked for, or that of the task, or the one the model came with."""
    named = {**parsed.from_file, **dict.fromkeys(parsed.cli_given)}
    if "system_prompt" in named or "task" not in named:
        return options.system_prompt
    return system_prompt_of(tasks.task, _task_params(parsed, tasks))


def _task_params(parsed: Parsed, tasks: TaskOptions) -> dict[str, Any]:
    return mapping("task_params", task_options(parsed, tasks).task_params)


def _as_prompt(tokenizer: Any, options: GenerateOptions) -> Any:
    """A chat or bare text, as the prompts of training were.

    Raises:
        UsageError: a chat is asked for, and the tokenizer has no chat template.
    """
    assert options.prompt is not None
    has_chats = bool(tokenizer.chat_template)
    if options.prompt_format == "chat" and not has_chats:
        raise UsageError("prompt_format: the model's tokenizer has no chat template; take text")
    if has_chats and options.prompt_format != "text":
        return chat_prompt(options.prompt, options.system_prompt)
    return "\n\n".join(filter(None, (options.system_prompt, options.prompt)))
