"""A thin trainer for LEPO on top of transformers' Trainer."""

from lepo_kernels import extras

extras.require("transformers", "accelerate", "rich", "yaml")
