"""LEPO in plain transformers and torch, as it is usually written: what ours is timed against.

Right, and without what a fused kernel does differently: distributions over the whole vocabulary in
every latent step, a product with the whole embedding table, tensors that grow by concatenation, all
logits of the training forward, and a log-softmax for each term of the loss. It serves models that
embed by a plain lookup and leave their logits alone (Llama, Qwen); it knows no KL term.
"""
