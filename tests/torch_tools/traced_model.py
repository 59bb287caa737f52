"""A model for tests of ``torch.jit.trace``, with random arguments of any size in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import as_hx, random_hx, states_of
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Sizes = tuple[int, int]  # B, T
# The keyword arguments of a form: each a function of B and T. They come behind the input.
Keywords = dict[str, Callable[[int, int], Tensor]]


def lengths(num_rows: int, num_steps: int) -> Tensor:
    return torch.randint(num_steps + 1, (num_rows,))


def full_lengths(num_rows: int, num_steps: int) -> Tensor:
    """Of rows that a PackedSequence may hold."""
    return torch.randint(1, num_steps + 1, (num_rows,))


def flags(num_rows: int, num_steps: int) -> Tensor:
    return torch.rand(num_rows, num_steps) < 0.5


def bounds(num_rows: int, num_steps: int) -> Tensor:
    """The boundaries of B rows among B * T tokens."""
    inner = torch.randint(num_rows * num_steps + 1, (num_rows - 1,)).sort().values
    return torch.cat((torch.tensor([0]), inner, torch.tensor([num_rows * num_steps])))


FORMS: dict[str, Keywords] = {
    "full": {},
    "lengths": {"lengths": lengths},
    "mask": {"mask": flags},
    "resets": {"resets": flags},
    "lengths and resets": {"lengths": lengths, "resets": flags},
    "mask and resets": {"mask": flags, "resets": flags},
    "mask of integers": {"mask": lambda *sizes: flags(*sizes).int()},
    "mask of floats": {"mask": lambda *sizes: flags(*sizes).float()},
    "resets [B, T, 1]": {"resets": lambda *sizes: flags(*sizes).half().unsqueeze(2)},
    "single": {},
    "single mask and resets": {"mask": flags, "resets": flags},
    "flat": {"cu_seqlens": bounds},
    "flat and resets": {"cu_seqlens": bounds, "resets": flags},
    "packed": {"lengths": full_lengths},
    "sorted": {"lengths": lambda *sizes: full_lengths(*sizes).sort(descending=True).values},
    "packed and resets": {"lengths": full_lengths, "resets": flags},
}


class Model(nn.Module):
    """A layer called in one form, on tensors alone; all results in one tuple."""

    def __init__(self, rnn: nn.RNNBase, form: str, **options: Any) -> None:
        super().__init__()
        self.rnn, self.form, self.options = rnn, form, options
        self.names = list(FORMS[form])

    def forward(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        keywords = dict(zip(self.names, tensors, strict=False))
        states = tensors[len(self.names) :]
        batch: Any = x
        if self.form in ("packed", "sorted", "packed and resets"):
            of_rows, first = keywords.pop("lengths"), self.rnn.batch_first
            in_order = self.form == "sorted"
            batch = pack_padded_sequence(x, of_rows, first, in_order)
            if "resets" in keywords:
                packed = pack_padded_sequence(keywords["resets"], of_rows, first, in_order)
                keywords["resets"] = packed.data
        out, hx = self.rnn(batch, as_hx(states), **keywords, **self.options)
        outs = out if isinstance(out, tuple) and not isinstance(out, PackedSequence) else [out]
        outs = [o.data if isinstance(o, PackedSequence) else o for o in outs]
        return (*outs, *states_of(hx))

    def example(self, sizes: Sizes, with_hx: bool) -> tuple[Tensor, ...]:
        """Random arguments for B rows and T steps."""
        single, flat = self.form.startswith("single"), self.form.startswith("flat")
        num_rows, num_steps = (1, sizes[1]) if single else sizes
        x = torch.randn(num_rows, num_steps, self.rnn.input_size)
        tensors = [make(num_rows, num_steps) for make in FORMS[self.form].values()]
        if single:
            x, tensors = x[0], [t[0] for t in tensors]
        elif flat:
            x, tensors = x.flatten(0, 1), [t.flatten() for t in tensors]
        elif not self.rnn.batch_first:
            x = x.transpose(0, 1)
            tensors = [t.transpose(0, 1) if t.dim() > 1 else t for t in tensors]
        states = random_hx(self.rnn, num_rows) if with_hx else []
        return (x, *tensors, *([s[:, 0] for s in states] if single else states))
