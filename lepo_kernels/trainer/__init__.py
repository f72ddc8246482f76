"""A thin trainer for LEPO on top of transformers' Trainer."""
