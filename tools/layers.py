"""A few small layers, forward and backward, for compute-sanitizer to watch."""

from __future__ import annotations

import torch

from varlen_rnn import VarLenGRU, VarLenLSTM

LENGTHS = (7, 0, 3, 12, 1, 5, 5, 2, 9, 4)
# The persistent kernels with one and with several blocks a team, and the generic ones.
CASES = (
    (torch.bfloat16, 64),
    (torch.float16, 128),
    (torch.bfloat16, 256),
    (torch.float32, 64),
    (torch.float64, 17),
)


def main() -> None:
    """Ends with an error if anything is not finite."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    lengths = torch.tensor(LENGTHS, device="cuda")
    for module in (VarLenLSTM, VarLenGRU):
        for dtype, size in CASES:
            rnn = module(16, size, bidirectional=True, batch_first=True, device="cuda", dtype=dtype)
            x = torch.randn(len(LENGTHS), max(LENGTHS), 16, device="cuda").to(dtype)
            leaves = (x.requires_grad_(), *rnn.parameters())
            out, _ = rnn(x, lengths=lengths)
            gradients = torch.autograd.grad(out.double().sum(), leaves)
            for tensor in (out, *gradients):
                if not tensor.isfinite().all():
                    raise SystemExit(f"{module.__name__}, H = {size}, {dtype}: not finite")
            print(f"{module.__name__}, H = {size}, {dtype}", flush=True)


if __name__ == "__main__":
    main()
