"""What a run leaves behind, and what a person sees while it lasts."""

from lepo_kernels import extras

extras.require("transformers", "rich", "yaml")
