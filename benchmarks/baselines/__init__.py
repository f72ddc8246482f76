"""What ours is timed against, written by us.

`latent_step`, `losses` and `mixture` are ops in plain torch, as well as a careful user can write
them; the first also holds the chain of published code, which sorts the vocabulary. `rollout` and
`training` are LEPO in plain transformers, as it is usually written: right, and without what a fused
kernel does differently: distributions over the whole vocabulary in every latent step, a product
with the whole embedding table, tensors that grow by concatenation, all logits of the training
forward, and a log-softmax for each term of the loss. The rollout can also take the K largest
entries first. They serve models that embed by a plain lookup and leave their logits alone (Llama,
Qwen), and know no KL term.
"""
