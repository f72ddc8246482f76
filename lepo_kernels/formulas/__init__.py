"""Plain torch on [N, K]: what the methods make of selected log-probabilities.

No kernels and no dispatch, so that the ops, the kernels and the trainer may all use them.
"""
