"""Names of other trainers' settings, and what they are called here."""

from collections.abc import Iterable

from lepo_kernels.suggest import did_you_mean

# Another tool's name -> ours.
ALIASES = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "accumulation_steps": "gradient_accumulation_steps",
    "grad_accum": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "warmup": "warmup_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "grad_clip": "max_grad_norm",
    "clip_grad": "max_grad_norm",
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "pretrained": "model",
    "dataset": "task",
    "dataset_name": "task",
    "dataset_path": "task_params",
    "data": "task",
    "output": "output_dir",
    "out": "output_dir",
    "save_dir": "output_dir",
    "resume": "resume_from_checkpoint",
    "overwrite": "overwrite_output_dir",
    "torch_dtype": "dtype",
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "max_length": "max_completion_length",
    "response_length": "max_completion_length",
    "group_size": "num_generations",
    "num_samples": "num_generations",
    "n_samples": "num_generations",
    "generation_batch_size": "steps_per_generation",
    "kl_coef": "beta",
    "kl_coeff": "beta",
    "init_kl_coef": "beta",
    "clip_range": "epsilon",
    "cliprange": "epsilon",
    "clip_ratio": "epsilon",
    "epsilon_low": "epsilon",
    "clip_ratio_high": "epsilon_high",
    "num_epochs": "num_train_epochs",
    "ppo_epochs": "num_iterations",
    "mu": "num_iterations",
    "latent_steps": "latent_length",
    "num_latent_steps": "latent_length",
    "gumbel_temperature": "tau",
    "gumbel_tau": "tau",
    "lora_rank": "lora_r",
    "lora": "lora_r",
    "use_peft": "lora_r",
    "cpu": "use_cpu",
    "no_cuda": "use_cpu",
    "device": "use_cpu",
    "wandb": "report_to",
    "eval_samples": "eval_num_samples",
    "system": "system_prompt",
}

# Another tool's name -> why there is nothing like it here.
UNSUPPORTED = {
    "use_vllm": "rollouts run on the policy itself; there is no vLLM engine",
    "vllm_mode": "rollouts run on the policy itself; there is no vLLM engine",
    "reward_model": "rewards are functions: a task has its own, LEPOTrainer takes any",
    "reward_model_path": "rewards are functions: a task has its own, LEPOTrainer takes any",
    "reward_funcs": "a task has its own reward (--task_params); LEPOTrainer takes any from Python",
    "load_in_4bit": "quantised weights are not trained; --lora_r trains an adapter",
    "load_in_8bit": "quantised weights are not trained; --lora_r trains an adapter",
}


def hint(name: str, known: Iterable[str], command: str) -> str:
    """What to write instead of an unknown setting, in one short clause.

    Args:
        name: the setting that there is not.
        known: the settings that there are.
        command: the subcommand whose help lists them.
    """
    known = set(known)
    # Case and dashes do not matter.
    plain = name.lower().replace("-", "_")
    if plain in UNSUPPORTED:
        return UNSUPPORTED[plain]
    if ALIASES.get(plain) in known:
        return f"it is called {ALIASES[plain]!r} here"
    return did_you_mean(name, known, otherwise=f"lepo {command} --help lists them")
