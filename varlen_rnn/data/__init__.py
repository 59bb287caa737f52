"""Batches of ragged data: a sampler that bounds a batch's valid tokens, for one process or many.

**Training in many processes.** ``DistributedDataParallel`` and FSDP average the gradients of the
ranks. Ranks hold different numbers of tokens, so the average of their mean losses is not the mean
loss over all tokens. What is: every rank's *sum*, times the number of ranks, over the tokens of
all ranks. The gradient then is that of one process on the union of all ranks' batches::

    num_tokens = lengths.sum()
    torch.distributed.all_reduce(num_tokens)
    out, _ = model(x, lengths=lengths)
    loss = cross_entropy(out[mask], targets[mask], reduction="sum")
    (loss * torch.distributed.get_world_size() / num_tokens).backward()

Where a loss has a term per row and not per token, count rows in place of tokens. A rank whose rows
are all empty needs no special case: its loss is 0, and every parameter has a gradient of 0.
"""

from varlen_rnn.data.sampler import TokenBudgetBatchSampler

__all__ = ["TokenBudgetBatchSampler"]
