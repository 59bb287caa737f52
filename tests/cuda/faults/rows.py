"""Faults of what lies around the steps, and of the generic path."""

from __future__ import annotations

from faults.persistent import VALUES
from faults.planting import Mutant

LAYOUTS, ROWS = "test_emulated_layouts.py::", "test_emulated_rows.py::"
CAPACITY = (LAYOUTS + "test_arrays_of_any_capacity_give_the_same_bits[ragged-lstm-bfloat16]",)
GENERIC = VALUES + "test_the_generic_path_on_every_batch[{}-float32-resets]"
LSTM, GRU = (GENERIC.format("lstm"),), (GENERIC.format("gru"),)
PRODUCTS = (
    "test_emulated_products.py::test_the_switch_of_rnns_is_that_of_all_products[lstm-6-{}-{}]"
)

ROW_FAULTS = [
    Mutant(
        "weights where they are",
        "persistent_path.cpp: aligned weights",
        "explicit AlignedWeights(const Layer& layer)\n"
        "  : weight_hh{layer.weight(0, kWeightHh),\n"
        "              layer.weight(layer.call.num_directions - 1, kWeightHh)} {}",
        "a view's data may begin at an odd element",
        ("persistent_path.cpp",),
        (LAYOUTS + "test_tensors_may_lie_at_any_address[lstm bfloat16 H16 True]",),
    ),
    Mutant(
        "products in autocast's dtype",
        "products.cpp: linear",
        "using torch::stable::detail::from;\n"
        'return call<3>("aten::linear", "", {from(tokens), from(weight), from(biases)});',
        "kernels take them for numbers of the layer's",
        ("products.cpp",),
        (LAYOUTS + "test_autocast_around_the_ops_changes_nothing[lstm bfloat16 H16 True]",),
    ),
    Mutant(
        "TF32 ignored",
        "products.cpp: precision",
        "return CUBLAS_COMPUTE_32F;",
        "one switch is for all products of a layer",
        ("products.cpp",),
        (PRODUCTS.format("tf32", 0),),
    ),
    Mutant(
        "the mode of torch's products not put back",
        "products.cpp: mode",
        "Gemm::~Gemm() {}",
        "torch's own products have another precision from then on",
        ("products.cpp",),
        (PRODUCTS.format("float32", 3),),
    ),
    Mutant(
        "inputs' rows side by side",
        "rows.cuh: token",
        "if (token < count_tokens(p.layout))\n"
        "  from = offset(p.from, row_of(p.layout, token) * p.row_bytes);",
        "x may be columns of a wider tensor",
        ("rows.cu", "start.cu"),
        (ROWS + "test_columns_of_a_wider_input[lstm-bfloat16-3]",),
    ),
    Mutant(
        "tokens gathered beyond the last one",
        "rows.cuh: token",
        "from = offset(p.from, row_of(p.layout, token) * p.pitch);",
        "rows behind the last token have no meaning",
        ("rows.cu", "start.cu"),
        CAPACITY,
    ),
    Mutant(
        "a warp for every row",
        "rows.cuh: lanes of a row",
        "while (shape.group_bits < 5) ++shape.group_bits;",
        "narrow rows want few lanes",
        ("rows.cu", "start.cu"),
        (ROWS + "test_a_row_is_the_work_of_a_warp_at_most",),
    ),
    Mutant(
        "odd bytes of a piece left out",
        "start.cu: tail",
        "(void)tail;",
        "a piece may end anywhere",
        ("start.cu",),
        (ROWS + "test_states_and_projections_of_any_width[float16-(3, 1)]",),
    ),
    Mutant(
        "biases of the first direction for both",
        "start.cu: direction of a bias",
        "compute_t<T> sum = value<T>(p.bias_ih[0], row);",
        "each direction has its own",
        ("start.cu",),
        LSTM,
    ),
    Mutant(
        "outputs at padding not zeroed",
        "ops.cpp: padding",
        "",
        "nobody else writes there",
        ("ops.cpp",),
        (LAYOUTS + "test_nothing_at_padding_counts[lstm bfloat16 H16 True-False]",),
    ),
    Mutant(
        "wrong h for the gradient of W_hh",
        "rows.cu: previous token",
        "const int64_t before = token_of(l, direction, place - 1);",
        "the place before is another segment's",
        ("rows.cu",),
        LSTM,
    ),
    Mutant(
        "h of the first direction for both",
        "rows.cu: previous output",
        "from = offset(p.out, row_of(l, before) * p.num_directions * p.row_bytes);",
        "each direction's W_hh has its own h",
        ("rows.cu",),
        LSTM,
    ),
    Mutant(
        "surplus rows not zeroed",
        "rows.cu: surplus",
        "const int64_t count = count_tokens(p.layout), surplus = 0;",
        "products of all tokens mix them in",
        ("rows.cu",),
        CAPACITY,
    ),
    Mutant(
        "as many rows zeroed from the first one on",
        "rows.cu: first of the surplus",
        "void* const to = offset(p.to[i], 0 * count);",
        "the surplus lies behind the tokens",
        ("rows.cu",),
        CAPACITY,
    ),
    Mutant(
        "a GRU's biases in the order of its gates",
        "gradients.cpp: bias of a GRU",
        "add_rows(pieces, to[kBiasIh], 0, sums, first, 2 * H);",
        "gradients have the order n, r, z",
        ("gradients.cpp",),
        GRU,
    ),
    Mutant(
        "final states a step too early",
        "generic.cuh: last step",
        "at.last = batch_size(l, p.step + 2) <= at.segment;",
        "a segment ends where the next step has it no more",
        ("generic_forward.cu", "generic_backward.cu"),
        LSTM,
    ),
    Mutant(
        "d_c_n not used",
        "generic_backward.cu: d_c_n",
        "d_c = 0;",
        "final cell states have gradients",
        ("generic_backward.cu",),
        LSTM,
    ),
]
