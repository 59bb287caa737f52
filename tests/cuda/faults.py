"""The faults that mutants.py plants, each with the tests that are enough to catch it."""

from __future__ import annotations

from dataclasses import dataclass

LSTM = "persistent_lstm_bf16.cu"
GRU = "persistent_gru_bf16.cu"
# Tests that are enough, by what they cover.
VALUES, BITS = "test_emulated_values.py::", "test_emulated_bitwise.py::"
LAYOUTS = "test_emulated_layouts.py::"
ORDER = BITS + "test_every_order_of_threads_gives_the_same_bits[{}]"
CLUSTERS = BITS + "test_every_cluster_size_gives_the_same_bits[{} bfloat16 H{}]"
BATCHES = VALUES + "test_the_persistent_path_on_every_batch[{}-bfloat16-{}-2]"
CAPACITY = LAYOUTS + "test_arrays_of_any_capacity_give_the_same_bits[{}-{}-bfloat16]"
GENERIC = VALUES + "test_the_generic_path_on_every_batch[{}-float32-{}]"
OF_LSTM = (
    BATCHES.format("lstm", "chains of resets"),
    ORDER.format("lstm"),
    CLUSTERS.format("lstm", 72),
)
OF_GRU = (BATCHES.format("gru", "chains of resets"), ORDER.format("gru"))
OF_PLAN = tuple(
    BATCHES.format("lstm", batch) for batch in ("chains", "ragged", "a row more than slots")
)
OF_GENERIC = tuple(GENERIC.format(cell, "resets") for cell in ("lstm", "gru"))


@dataclass(frozen=True)
class Mutant:
    """One fault. ``old`` occurs exactly once in the file."""

    name: str
    file: str
    old: str
    new: str
    why: str
    sources: tuple[str, ...] = (LSTM,)
    tests: tuple[str, ...] = OF_LSTM


MUTANTS = [
    Mutant(
        "no wait for the exchange",
        "persistent_forward.cuh",
        "    w.wait(step);\n",
        "",
        "multiplies vectors that are not there yet",
    ),
    Mutant(
        "no wait for the exchange, backward",
        "persistent_backward.cuh",
        "      w.wait(step - 1);\n",
        "",
        "multiplies gradients that are not there yet",
    ),
    Mutant(
        "wrong parity",
        "worker.cuh",
        "static_cast<unsigned>(exchange >> 1) & 1u",
        "static_cast<unsigned>(exchange) & 1u",
        "each barrier completes a phase every second exchange",
    ),
    Mutant(
        "one buffer of vectors",
        "worker.cuh",
        "simt::shared<uint32_t>(team.vectors) + (exchange & 1) * kSlots * team.pitch",
        "simt::shared<uint32_t>(team.vectors)",
        "the next vectors arrive while others still read these",
    ),
    Mutant(
        "one mbarrier",
        "worker.cuh",
        "simt::shared<uint64_t>(0) + (exchange & 1)",
        "simt::shared<uint64_t>(0)",
        "two exchanges count in one phase",
    ),
    Mutant(
        "no sync_block before the pairs",
        "persistent_forward.cuh",
        "    simt::copy_async_wait<kInputsAhead - 1>();\n    simt::sync_block();\n",
        "    simt::copy_async_wait<kInputsAhead - 1>();\n",
        "pairs read sums that other warps have not written",
    ),
    Mutant(
        "no sync_block before the pairs, backward",
        "persistent_backward.cuh",
        "    simt::copy_async_wait<kInputsAhead - 1>();\n    simt::sync_block();\n",
        "    simt::copy_async_wait<kInputsAhead - 1>();\n",
        "pairs read sums that other warps have not written",
    ),
    Mutant(
        "too few bytes expected",
        "persistent_forward.cuh",
        "if (goes_on) w.expect(step + 1, H);",
        "if (goes_on) w.expect(step + 1, H - 8);",
        "the phase completes before the last units are there",
    ),
    Mutant(
        "h goes on where a segment starts from zeros",
        "persistent_forward.cuh",
        "if (starts != Turn::kContinues) {",
        "if (starts >= 0) {",
        "a segment without an initial row gets the h of the one before it in the slot",
    ),
    Mutant(
        "c goes on where a segment starts",
        "persistent_forward.cuh",
        "    state[0] = c[0];\n    state[1] = c[1];\n",
        "    (void)state;\n    (void)c;\n",
        "a segment gets the c of the one before it in the slot",
    ),
    Mutant(
        "h goes on where a segment of a GRU starts",
        "persistent_forward.cuh",
        "    state[0] = h[0];\n    state[1] = h[1];\n",
        "    (void)state;\n",
        "z mixes in the h of the segment before it in the slot",
        (GRU,),
        OF_GRU,
    ),
    Mutant(
        "b_hn left out",
        "persistent_forward.cuh",
        "const float from_h = h[2][e] + bias[e];",
        "const float from_h = h[2][e] + 0.0f * bias[e];",
        "the gate n has a bias within the reset",
        (GRU,),
        OF_GRU,
    ),
    Mutant(
        "no wait for the inputs",
        "persistent_forward.cuh",
        "    simt::copy_async_wait<kInputsAhead - 1>();\n",
        "",
        "reads inputs and turns whose copy is under way",
    ),
    Mutant(
        "a wait for the inputs of the step before",
        "persistent_backward.cuh",
        "simt::copy_async_wait<kInputsAhead - 1>();",
        "simt::copy_async_wait<kInputsAhead>();",
        "the youngest group that this step needs may be under way",
    ),
    Mutant(
        "a ring of too few inputs",
        "worker.cuh",
        "step % kInputRing * team.input_bytes",
        "step % (kInputRing - 1) * team.input_bytes",
        "a warp that is ahead overwrites what another one still reads",
    ),
    Mutant(
        "a ring of too few turns",
        "worker.cuh",
        "(step & (kTurnRing - 1)) * kSlots * kWordsOfTurn",
        "(step & (kTurnRing / 2 - 1)) * kSlots * kWordsOfTurn",
        "the turns of a step to come take the place of one that is not over",
    ),
    Mutant(
        "wrong row of ldmatrix",
        "worker.cuh",
        "lane % 8 * team.pitch + lane / 8 * 4",
        "lane % 8 * team.pitch + lane / 16 * 4",
        "half of the lanes name the columns of others",
    ),
    Mutant(
        "rows and columns of a fragment exchanged",
        "worker.cuh",
        "row + m * 16 + r % 2 * 8, word + tile * 8 + r / 2 * 4",
        "row + m * 16 + r / 2 * 8, word + tile * 8 + r % 2 * 4",
        "registers 1 and 2 of A hold the lower rows and the right columns",
    ),
    Mutant(
        "fragments in shared memory overlap",
        "worker.cuh",
        "(index * 2 + m) * 32",
        "(index + m) * 32",
        "every tile has two fragments",
    ),
    Mutant(
        "parts of the columns not summed",
        "worker.cuh",
        "for (int k = 0; k < team.k_parts; ++k) {",
        "for (int k = 0; k < 1; ++k) {",
        "only the first part of the product counts",
    ),
    Mutant(
        "wrong rows of the sums",
        "worker.cuh",
        "to[slot * sum_pitch() + m * 16 + r / 2 * 8]",
        "to[slot * sum_pitch() + m * 8 + r / 2 * 16]",
        "D's rows of a lane are 8 apart, those of its two fragments 16",
    ),
    Mutant(
        "a rank that gets nothing",
        "worker.cuh",
        "for (unsigned i = 0; i < size; ++i) {",
        "for (unsigned i = 1; i < size; ++i) {",
        "a block waits for its own part",
    ),
    Mutant(
        "no sync_cluster after the mbarriers are made",
        "worker.cuh",
        "    simt::sync_cluster();\n",
        "",
        "a block sends to one that has not begun",
    ),
    Mutant(
        "columns of padding not zeroed",
        "worker.cuh",
        "      all[i] = 0;\n",
        "      (void)all;\n",
        "weights of 0 times whatever lay there",
    ),
    Mutant(
        "the direct term dropped",
        "persistent_backward.cuh",
        "{ return state[e]; }",
        "{ return 0.0f * state[e]; }",
        "h goes to the next h through z, too",
        (GRU,),
        OF_GRU,
    ),
    Mutant(
        "c before a step from the wrong place",
        "persistent_backward.cuh",
        "p.cells + (first + w.turn(step + 1, slot).place) * H",
        "p.cells + (first + turn.place) * H",
        "the forget gate's gradient is that of c before it",
    ),
    Mutant(
        "h before a step from the wrong row",
        "persistent_backward.cuh",
        "int64_t{w.turn(step + 1, slot).row} * D + d",
        "int64_t{turn.row} * D + d",
        "z's gradient is that of h before it",
        (GRU,),
        OF_GRU,
    ),
    Mutant(
        "c_0 not used",
        "persistent_backward.cuh",
        "state_pair<E>(p.c_0, p,",
        "state_pair<E>(nullptr, p,",
        "the first step's forget gate has a gradient, too",
    ),
    Mutant(
        "d_h_0 not written",
        "persistent_backward.cuh",
        "if (next.starts >= 0) {",
        "if (next.starts >= 0 && unit < 0) {",
        "rows that start a segment have a gradient",
    ),
    Mutant(
        "d_c goes on where a segment ends",
        "persistent_backward.cuh",
        "if (turn.ends != Turn::kContinues) {",
        "if (turn.ends >= 0) {",
        "a segment without a final row gets the d_c of the one behind it in the slot",
    ),
    Mutant(
        "all segments dealt the same way",
        "plan.cu",
        "return round % 2 == 0 ? at : num_slots - 1 - at;",
        "return round % 2 == 0 ? at : at;",
        "not the slots whose chains were laid",
        ("plan.cu",),
        OF_PLAN,
    ),
    Mutant(
        "idle turns not written",
        "plan.cu",
        "        store_turn(turn_of(p, direction, slot, step), idle);\n",
        "        (void)idle;\n",
        "a slot that is done takes whatever lay there",
        ("plan.cu",),
        OF_PLAN,
    ),
    Mutant(
        "last step of a segment a step too early",
        "plan.cu",
        "if (batch_size(l, step + 1) <= segment) {",
        "if (batch_size(l, step + 2) <= segment) {",
        "final states of two steps",
        ("plan.cu",),
        OF_PLAN,
    ),
    Mutant(
        "teams as long as their first slot",
        "plan.cu",
        "if (load_of_slot > steps) steps = load_of_slot;",
        "if (lane == 0) steps = load_of_slot;",
        "a later slot may have the longest chain",
        ("plan.cu",),
        OF_PLAN,
    ),
    Mutant(
        "turns of a team begin where the last one's do",
        "plan.cu",
        "for (int earlier = 0; earlier < team; ++earlier)",
        "for (int earlier = 0; earlier + 1 < team; ++earlier)",
        "each team's turns lie behind those of the one before",
        ("plan.cu",),
        OF_PLAN,
    ),
    Mutant(
        "weights where they are",
        "persistent_path.cpp",
        "weight_hh{aligned(layer.weight(0, kWeightHh)),",
        "weight_hh{layer.weight(0, kWeightHh),",
        "a view's data may begin at an odd element",
        ("persistent_path.cpp",),
        (LAYOUTS + "test_tensors_may_lie_at_any_address[lstm bfloat16 H16 True]",),
    ),
    Mutant(
        "products in autocast's dtype",
        "tensors.h",
        'call<4>("aten::linear", "out", {from(input), from(weight), from(bias), from(out)});\n',
        'call<3>("aten::linear", "", {from(input), from(weight), from(bias)});\n',
        "float32 layers get 16-bit inputs",
        ("ops.cpp",),
        (LAYOUTS + "test_autocast_around_the_ops_changes_nothing[lstm tf32 H16 True]",),
    ),
    Mutant(
        "final states a step too early",
        "generic.cuh",
        "at.last = batch_size(l, step + 1) <= at.segment;",
        "at.last = batch_size(l, step + 2) <= at.segment;",
        "a segment ends where the next step has it no more",
        ("generic_forward.cu", "generic_backward.cu"),
        OF_GENERIC,
    ),
    Mutant(
        "wrong h for the gradient of W_hh",
        "rows.cu",
        "token_of(l, p.direction, load(l.first_token + step - 1) + segment)",
        "token_of(l, p.direction, place - 1)",
        "the place before is another segment's",
        ("rows.cu",),
        OF_GENERIC,
    ),
    Mutant(
        "d_c_n not used",
        "generic_backward.cu",
        "d_c = state_value<T>(p.d_c_n, final_row_of(p.layout, at.segment), H, at.column);",
        "d_c = 0;",
        "final cell states have gradients",
        ("generic_backward.cu",),
        OF_GENERIC,
    ),
    Mutant(
        "surplus rows not zeroed",
        "rows.cu",
        "const int64_t first = count_tokens(p.layout) * p.columns,",
        "const int64_t first = p.layout.num_tokens * p.columns,",
        "products of all tokens mix them in",
        ("rows.cu",),
        (CAPACITY.format("ragged", "lstm"),),
    ),
    Mutant(
        "tokens gathered beyond the last one",
        "rows.cu",
        "if (token < count_tokens(p.layout)) {",
        "if (token < p.layout.num_tokens) {",
        "rows behind the last token have no meaning",
        ("rows.cu",),
        (CAPACITY.format("ragged", "lstm"),),
    ),
    Mutant(
        "a row's final segment is another's",
        "rows.cu",
        "if (segment >= 0) store(p.final_row + segment, row);",
        "if (segment >= 0) store(p.final_row + segment, row ^ 1);",
        "final states come out in the caller's order",
        ("rows.cu",),
        OF_GENERIC,
    ),
]
