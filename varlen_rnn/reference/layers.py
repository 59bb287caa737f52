"""One layer of each cell over the valid tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.layout import Layout
from varlen_rnn.layout.transforms import Rectangular
from varlen_rnn.reference.cells import Linear, State, gru_cell, lstm_cell
from varlen_rnn.runtime.tracing import tracing


def lstm(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hr: Sequence[Tensor],
    layout: Layout,
    output_cells: bool = False,
) -> tuple[Tensor, ...]:
    """One LSTM layer, in one or both directions.

    Equivalent to
    ``torch.nn.LSTM(I, H, bidirectional=D == 2)(pack_padded_sequence(...), (h_0, c_0))``. bfloat16
    and float16 are computed in float32, with ``h`` rounded after every step.

    Args:
        x: ``[R, I]``, the flat tensor that ``layout.rows`` points into.
        h_0: ``[D, B, P]``, or None for zeros.
        c_0: ``[D, B, H]``, or None for zeros.
        weight_ih: for each direction ``[4H, I]``, gates in the order i, f, g, o.
        weight_hh: for each direction ``[4H, P]``.
        bias_ih: for each direction ``[4H]``, or nothing at all.
        bias_hh: like ``bias_ih``.
        weight_hr: for each direction ``[P, H]``, or nothing at all.
        layout: the ragged batch.
        output_cells: whether every cell state is wanted, too.

    Returns:
        ``out [R, D * P]``, zero where no token lies; ``h_n [D, B, P]``; ``c_n [D, B, H]``; and, if
        they are wanted, all ``c_t [D, N, H]`` as they are computed: float32 for 16-bit types, the
        tokens of each direction in its own order (see :func:`cells_of_rows`).

    Example:
        >>> import torch
        >>> from varlen_rnn import layout, reference
        >>> weights = [[weight] for weight in torch.nn.LSTM(3, 5).all_weights[0]]
        >>> batch = layout.from_padded(
        ...     4, 2, lengths=torch.tensor([4, 2]), batch_first=False, bidirectional=False
        ... )
        >>> x = torch.randn(8, 3)
        >>> out, h_n, c_n = reference.lstm(x, None, None, *weights, [], batch)
        >>> out.shape, h_n.shape, c_n.shape
        (torch.Size([8, 5]), torch.Size([1, 2, 5]), torch.Size([1, 2, 5]))
    """
    weights = _per_direction(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    h_size = weight_hh[0].shape[1]
    c_size = weight_ih[0].shape[0] // 4
    out, (h_n, c_n), cells = run(lstm_cell, x, (h_0, c_0), (h_size, c_size), weights, layout)
    if not output_cells:
        return out, h_n, c_n
    return out, h_n, c_n, torch.stack([torch.cat(steps) for steps in cells])


def gru(
    x: Tensor,
    h_0: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """One GRU layer, in one or both directions: :func:`lstm` without a cell state and a projection.

    Equivalent to ``torch.nn.GRU(I, H, bidirectional=D == 2)(pack_padded_sequence(...), h_0)``;
    weights are ``[3H, ...]``, gates in the order r, z, n.

    Example:
        >>> import torch
        >>> from varlen_rnn import layout, reference
        >>> weights = [[weight] for weight in torch.nn.GRU(3, 5).all_weights[0]]
        >>> batch = layout.full(4, 2, batch_first=False, bidirectional=False)
        >>> out, h_n = reference.gru(torch.randn(8, 3), None, *weights, batch)
        >>> out.shape, h_n.shape
        (torch.Size([8, 5]), torch.Size([1, 2, 5]))
    """
    weights = _per_direction(weight_ih, weight_hh, bias_ih, bias_hh, [])
    out, (h_n,), _ = run(gru_cell, x, (h_0,), (weight_hh[0].shape[1],), weights, layout)
    return out, h_n


def _per_direction(
    weight_ih: Sequence[Tensor], *others: Sequence[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    """Transposes lists over directions to one tuple a direction; an empty list gives None."""
    return [
        (weight, *(other[d] if other else None for other in others))
        for d, weight in enumerate(weight_ih)
    ]


def run(
    cell: Callable[..., State],
    x: Tensor,
    initial: Sequence[Tensor | None],
    sizes: Sequence[int],
    weights: Sequence[tuple[Tensor | None, ...]],
    layout: Layout,
    linear: Linear = F.linear,
) -> tuple[Tensor, State, list[list[Tensor]]]:
    """Output, final states, and for each direction every step's cell states.

    ``linear`` computes the products with weights.
    """
    dtype = x.dtype
    compute = torch.promote_types(dtype, torch.float32)
    tokens = (x if layout.rows is None else x.index_select(0, layout.rows)).to(compute)
    if isinstance(layout, Rectangular):  # padding may hold NaN, whose gradient is NaN, times 0 too
        tokens = tokens.masked_fill(~layout.holds.unsqueeze(1), 0)
    outs, finals, cells = [], [], []
    for d, direction_weights in enumerate(weights):
        state_0 = tuple(
            x.new_zeros(layout.num_rows, size, dtype=compute) if s is None else s[d].to(compute)
            for s, size in zip(initial, sizes, strict=True)
        )
        out, final, cells_of_direction = _direction(
            cell,
            tokens if d == 0 else _reversed(tokens, layout),
            state_0,
            [None if w is None else w.to(compute) for w in direction_weights],
            layout,
            dtype,
            linear,
        )
        outs.append(out if d == 0 else _reversed(out, layout))
        finals.append(final)
        cells.append(cells_of_direction)
    out = _to_rows(torch.cat(outs, dim=1), layout, x.shape[0])
    return out, tuple(torch.stack(parts) for parts in zip(*finals, strict=True)), cells


def cells_of_rows(cells: Tensor, layout: Layout, num_flat_rows: int) -> Tensor:
    """Cell states in the tokens' own places: ``[D, N, H]`` to ``[R, D * H]``, zero at padding.

    In: each direction's in its own order, as :func:`lstm` and ``varlen_rnn::lstm_forward`` have
    them. The layout need not be exact.

    Example:
        >>> import torch
        >>> from varlen_rnn import layout, reference
        >>> weights = [[weight] for weight in torch.nn.LSTM(3, 5).all_weights[0]]
        >>> batch = layout.from_padded(
        ...     4, 2, lengths=torch.tensor([4, 2]), batch_first=False, bidirectional=False
        ... )
        >>> *_, cells = reference.lstm(torch.randn(8, 3), None, None, *weights, [], batch, True)
        >>> cells.shape, reference.cells_of_rows(cells, batch, num_flat_rows=8).shape
        (torch.Size([1, 6, 5]), torch.Size([8, 5]))
    """
    forward, *reverse = cells.unbind()
    by_direction = torch.cat([forward, *(_reversed(tokens, layout) for tokens in reverse)], dim=1)
    if layout.rows is None or (layout.batch_sizes.is_cpu and not tracing()):
        return _to_rows(by_direction, layout, num_flat_rows)
    # Behind the N tokens stand values without meaning, which go to one more row, which is cut off.
    places = torch.arange(layout.rows.shape[0], device=layout.rows.device)
    rows = torch.where(places < layout.batch_sizes.sum(), layout.rows, num_flat_rows)
    zeros = by_direction.new_zeros(num_flat_rows + 1, by_direction.shape[1])
    return zeros.index_copy(0, rows, by_direction)[:-1]


def _to_rows(tokens: Tensor, layout: Layout, num_flat_rows: int) -> Tensor:
    """From step order to the flat tensor, ``[N, *]`` to ``[R, *]``, with zeros at padding."""
    if layout.rows is None:
        return tokens
    if isinstance(layout, Rectangular):
        # What stands in places without a token goes to one more row, which is cut off.
        rows = layout.rows.where(layout.holds, num_flat_rows)
        zeros = tokens.new_zeros(num_flat_rows + 1, tokens.shape[1])
        return zeros.index_copy(0, rows, tokens)[:-1]
    zeros = tokens.new_zeros(num_flat_rows, tokens.shape[1])
    return zeros.index_copy(0, layout.rows, tokens)


def _reversed(tokens: Tensor, layout: Layout) -> Tensor:
    """Step order to the reverse direction's order, and back."""
    assert layout.reverse is not None, "a layout made with bidirectional=False"
    return tokens.index_select(0, layout.reverse)


def _direction(
    cell: Callable[..., State],
    tokens: Tensor,
    state_0: State,
    weights: Sequence[Tensor | None],
    layout: Layout,
    dtype: torch.dtype,
    linear: Linear,
) -> tuple[Tensor, State, list[Tensor]]:
    """Runs over ``tokens [N, I]``.

    Returns ``out [N, P]``, the final states ``[B, *]``, and every step's cell states ``[*, H]``.
    """
    starts = layout.initial_row.clamp(min=0)
    fresh = (layout.initial_row < 0).unsqueeze(1)
    state = tuple(s.index_select(0, starts).masked_fill(fresh, 0) for s in state_0)
    outs: list[Tensor] = []
    cells: list[Tensor] = []
    ended: list[State] = []
    weight_ih, weight_hh, bias_ih, bias_hh, *weight_hr = weights
    assert weight_ih is not None
    from_tokens = linear(tokens, weight_ih, bias_ih)
    # Without a token one step over no rows, so that results have a graph all the same.
    sizes = layout.batch_sizes.tolist() or [0]
    holds = torch.split(layout.holds, sizes) if isinstance(layout, Rectangular) else None
    for step, from_x in enumerate(torch.split(from_tokens, sizes)):
        active = len(from_x)
        ended.append(tuple(s[active:] for s in state))
        before = tuple(s[:active] for s in state)
        h, *c = cell(from_x, before, weight_hh, bias_hh, *weight_hr, linear=linear)
        out = h.to(dtype)
        state = (out.to(h.dtype), *c)
        if holds is not None:
            moves = holds[step].unsqueeze(1)
            state = tuple(a.where(moves, b) for a, b in zip(state, before, strict=True))
        outs.append(out)
        cells += state[1:]
    ended.append(state)
    # Of every segment, longest first, and of none at the end, where -1 points.
    last = layout.final_segment
    final = tuple(
        torch.where(
            (last < 0).unsqueeze(1), s, F.pad(torch.cat(parts[::-1]), (0, 0, 0, 1))[last]
        ).to(dtype)
        for s, parts in zip(state_0, zip(*ended, strict=True), strict=True)
    )
    return torch.cat(outs), final, cells
