"""Faults of layouts: of making them on the device, and of what is derived from them and kept."""

from __future__ import annotations

from faults.persistent import VALUES
from faults.planting import Mutant

BATCH = VALUES + "test_the_persistent_path_on_every_batch[lstm-bfloat16-{}-2]"
OF_PLAN = tuple(BATCH.format(batch) for batch in ("chains", "ragged", "a row more than slots"))
LAYOUTS = "test_emulated_device_layouts.py::"
EVERY_FORM = LAYOUTS + "test_every_batch_in_every_form[{}]"
MANY = (LAYOUTS + "test_more_segments_than_are_compared_with_each_other[0]",)
PLANS = "test_emulated_plans.py::"
PLAN, CACHE, KEYS = ("plan.cu",), ("layout_cache.cpp",), ("layout.cpp",)
ON_DEVICE = ("device_layout.cu",)

PLAN_FAULTS = [
    Mutant(
        "all segments dealt the same way",
        "plan.cu: back and forth",
        "return at;",
        "not the slots whose chains were laid",
        PLAN,
        OF_PLAN,
    ),
    Mutant(
        "idle turns not written",
        "plan.cu: idle turn",
        "(void)idle;",
        "a slot that is done takes whatever lay there",
        PLAN,
        OF_PLAN,
    ),
    Mutant(
        "last step of a segment a step too early",
        "plan.cu: last step",
        "if (batch_size(l, step + 2) <= segment) {",
        "final states of two steps",
        PLAN,
        OF_PLAN,
        lines=1,
    ),
    Mutant(
        "teams as long as their first slot",
        "plan.cu: longest slot",
        "if (lane == 0) steps = load_of_slot;",
        "a later slot may have the longest chain",
        PLAN,
        OF_PLAN,
    ),
    Mutant(
        "turns of a team begin where the last one's do",
        "plan.cu: earlier teams",
        "for (int earlier = 0; earlier + 1 < team; ++earlier) first_step += steps[earlier];",
        "each team's turns lie behind those of the one before",
        PLAN,
        OF_PLAN,
    ),
    Mutant(
        "a row's final segment is another's",
        "layout.cu: final row",
        "if (segment >= 0) simt::store(p.final_row + segment, row ^ 1);",
        "final states come out in the caller's order",
        ("layout.cu",),
        (VALUES + "test_the_generic_path_on_every_batch[lstm-float32-resets]",),
    ),
]
KEPT_FAULTS = [
    Mutant(
        "plan reused for another layout",
        "layout_cache.cpp: kept layout",
        "const auto found = entries.begin();",
        "each layout has a plan of its own",
        CACHE,
        (PLANS + "test_layouts_of_the_same_sizes_in_turn[lstm-persistent path-True]",),
    ),
    Mutant(
        "plan of any number of teams",
        "layout_cache.cpp: plan of these numbers",
        "if (known->directions == num_directions) return known;",
        "a plan deals the segments to so many teams",
        CACHE,
        (PLANS + "test_each_number_of_teams_has_a_plan[lstm]",),
    ),
    Mutant(
        "plan of any directions",
        "layout_cache.cpp: plan of these numbers",
        "if (known->teams == num_teams) return known;",
        "a plan has turns for so many directions",
        CACHE,
        (PLANS + "test_each_number_of_teams_has_a_plan[lstm]",),
    ),
    Mutant(
        "kept while a graph is captured",
        "layout.cpp: whether to keep",
        "const bool keeps = keeps_plans() && (exact || !on_host);",
        "a graph is replayed when its arrays hold something else",
        KEYS,
        (PLANS + "test_nothing_is_kept_or_used_while_a_graph_is_captured",),
    ),
    Mutant(
        "a recorded call's layout kept",
        "layout.cpp: whether to keep",
        "const bool keeps = keeps_plans() && !is_capturing(stream);",
        "other arrays come to lie in the same memory",
        KEYS,
        (PLANS + "test_nothing_is_kept_of_a_recorded_call_or_for_who_did_not_ask",),
    ),
    Mutant(
        "a key without sizes on the host",
        "layout.cpp: key",
        "LayoutKey key{place, stream, layout.num_flat_rows, {}, {}};",
        "their values are part of the layout",
        KEYS,
        (PLANS + "test_sizes_on_the_host_may_be_changed_in_place",),
    ),
    Mutant(
        "a key without arrays",
        "layout.cpp: key of an array",
        "(void)index;",
        "layouts of the same sizes differ in their arrays",
        KEYS,
        (PLANS + "test_layouts_of_the_same_sizes_in_turn[lstm-persistent path-True]",),
    ),
    Mutant(
        "a key without reverse",
        "layout.cpp: key of an array",
        "if (index != 2) key.arrays[index] = {array->const_data_ptr(), array->size(0), 1};",
        "the plan has the other direction's tokens",
        KEYS,
        (PLANS + "test_each_array_counts[reverse]",),
    ),
    Mutant(
        "a key without final_segment",
        "layout.cpp: key of an array",
        "if (index != 4) key.arrays[index] = {array->const_data_ptr(), array->size(0), 1};",
        "the plan says where final states go",
        KEYS,
        (PLANS + "test_each_array_counts[final_segment]",),
    ),
    Mutant(
        "arrays of a kept layout not held",
        "layout.cpp: held array",
        "(void)arrays;",
        "another layout's come to lie there",
        KEYS,
        (PLANS + "test_arrays_that_are_kept_stay_where_they_are",),
    ),
]
DEVICE_FAULTS = [
    Mutant(
        "segments sorted without keeping their order",
        "device_layout.cu: rank",
        "rank += its > length || (its == length && other > segment);",
        "segments of one length stay in the order of rows",
        ON_DEVICE,
        (EVERY_FORM.format("ragged"),),
    ),
    Mutant(
        "many segments sorted the other way",
        "device_layout.cu: key of a digit",
        "const int64_t key = load_fresh(p.length_of_segment + segment);",
        "the longest ones come first",
        ON_DEVICE,
        MANY,
    ),
    Mutant(
        "any number of digits",
        "device_layout.cu: digits",
        "for (int shift = 0; longest >> shift > 0; shift += kDigitBits) {",
        "after an odd number the order lies in the other array",
        ON_DEVICE,
        MANY,
        lines=1,
    ),
    Mutant(
        "a reset at a row's first token ignored",
        "device_layout.cu: first reset",
        "if (number == 0 && tokens > 0) *begins_anew = 0 * first_reset;",
        "such a row does not start from its initial state",
        ON_DEVICE,
        (EVERY_FORM.format("resets"),),
    ),
    Mutant(
        "rows without tokens have a final segment",
        "device_layout.cu: empty row",
        "",
        "their entry is -1",
        ON_DEVICE,
        (EVERY_FORM.format("ragged"),),
    ),
    Mutant(
        "no zeros behind the last step",
        "device_layout.cu: steps behind",
        "",
        "batch_sizes ends in zeros",
        ON_DEVICE,
        (EVERY_FORM.format("holes"),),
    ),
    Mutant(
        "no barrier between the order and its use",
        "device_layout.cu: order is there",
        "",
        "other threads have not written theirs",
        ON_DEVICE,
        (EVERY_FORM.format("chains"), EVERY_FORM.format("ragged")),
    ),
    Mutant(
        "no barrier between what a scan reads and writes",
        "scan.cuh: read before written",
        "",
        "a thread reads a sum that is further than its own",
        (*ON_DEVICE, "layout.cu"),
        (EVERY_FORM.format("chains of resets"), EVERY_FORM.format("resets")),
    ),
    Mutant(
        "no barrier behind a scan",
        "scan.cuh: shared is free",
        "",
        "the next one overwrites what others still read",
        (*ON_DEVICE, "layout.cu"),
        (EVERY_FORM.format("chains of resets"), EVERY_FORM.format("resets")),
    ),
]
