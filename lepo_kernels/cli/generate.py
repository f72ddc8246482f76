"""``lepo generate``: complete a prompt, and show each soft step as its tokens with weights."""

from dataclasses import replace
from typing import Any

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.loading import config_of_run, load_for_inference
from lepo_kernels.cli.options import GenerateOptions, ModelOptions, SamplingOptions
from lepo_kernels.cli.parsing import parse
from lepo_kernels.console import as_text, make_console
from lepo_kernels.report.tables import soft_steps_table
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.tasks.task import chat_prompt
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.prompts import encode_prompts, latent_steps, spoken_texts


def run(words: list[str]) -> None:
    """Complete the prompt ``num_samples`` times.

    Raises:
        UsageError: an option is wrong, or the model cannot be loaded.
    """
    parsed = parse(
        "generate",
        (GenerateOptions, ModelOptions, SamplingOptions),
        words,
        file=config_of_run(words),
    )
    options, model_options, sampling = parsed.options
    if options.prompt is None:
        raise UsageError("prompt: missing; give one, such as --prompt 'What is 3 + 4?'")
    if options.num_samples < 1:
        raise UsageError(f"num_samples: expected at least 1, got {options.num_samples}")
    console = make_console()
    model, tokenizer = load_for_inference(model_options, sampling.use_cpu, console)
    try:
        config = generation_config(sampling, model, tokenizer)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    config = replace(config, do_sample=not options.greedy)
    prompt = _as_prompt(tokenizer, options)
    ids, mask = encode_prompts(tokenizer, [prompt])
    with console.status("generating ...") as status:
        rollout = latent_generate(
            model,
            ids.to(model.device),
            mask.to(model.device),
            config,
            num_return_sequences=options.num_samples,
            seed=sampling.seed,
            progress=lambda done, total: status.update(f"generating {done}/{total} ..."),
        )
    for sample, text in enumerate(spoken_texts(tokenizer, rollout)):
        if options.num_samples > 1:
            console.rule(f"sample {sample + 1}")
        steps = latent_steps(tokenizer, rollout, sample, options.show_tokens)
        if steps:
            console.print(soft_steps_table(steps))
        console.print(as_text(text.strip()))


def _as_prompt(tokenizer: Any, options: GenerateOptions) -> Any:
    """A chat if the tokenizer knows chats, else the bare text."""
    assert options.prompt is not None
    if tokenizer.chat_template:
        return chat_prompt(options.prompt, options.system_prompt)
    return "\n\n".join(filter(None, (options.system_prompt, options.prompt)))
