"""Faults of the guard at a kernel's first use, and of what follows a wait without end."""

from __future__ import annotations

from faults.persistent import WAITS
from faults.planting import Mutant

PATH, CHECK = ("persistent_path.cpp",), ("self_check.cpp",)
CHECKS = "test_emulated_self_check.py::"
FOUND = (CHECKS + "test_a_fault_is_found_at_first_use_and_the_numbers_are_right[lstm-bfloat16]",)
OWN_VERDICT = (CHECKS + "test_each_pass_and_size_has_a_verdict_of_its_own",)
LOST_LATER = (
    WAITS + "test_lost_in_a_later_call_the_next_call_of_any_layer_says_so_once[1-True-bfloat16]",
)
LOST_FIRST = (WAITS + "test_lost_at_first_use_it_is_a_fault_of_the_kernel[1]",)

GUARD = [
    Mutant(
        "guard skipped",
        "persistent_path.cpp: guard",
        "(void)configuration;",
        "kernels are used that nobody has checked",
        PATH,
        FOUND,
    ),
    Mutant(
        "waits without end not read",
        "persistent_path.cpp: waits",
        "",
        "wrong results, and nobody says so",
        PATH,
        LOST_LATER,
    ),
    Mutant(
        "one status for checks and calls",
        "persistent_path.cpp: status",
        "p.status = wait_status(device, /*make=*/true);",
        "a check's expired wait is that of a call",
        PATH,
        LOST_FIRST,
    ),
    Mutant(
        "a check by as many teams as there are",
        "persistent_path.cpp: number of teams",
        "",
        "no slot is filled again",
        PATH,
        (CHECKS + "test_slots_are_filled_again_and_some_segments_start_from_zeros",),
    ),
    Mutant(
        "bad counts as good",
        "self_check.cpp: verdict",
        "all.verdicts[configuration] = Verdict::kGood;",
        "the second call is wrong",
        CHECK,
        FOUND,
    ),
    Mutant(
        "a verdict for both passes",
        "self_check.cpp: key",
        "return {c.device, c.is_lstm, false, c.dtype, c.hidden_size, c.cluster_size, c.variant};",
        "their kernels are others",
        CHECK,
        (CHECKS + "test_a_right_kernel_is_used_after_one_check_of_each_pass[lstm-bfloat16]",),
    ),
    Mutant(
        "a verdict for teams of any size",
        "self_check.cpp: key",
        "return {c.device, c.is_lstm, c.is_backward, c.dtype, c.hidden_size, 0, 0};",
        "they exchange otherwise",
        CHECK,
        OWN_VERDICT,
    ),
    Mutant(
        "checks in a capture",
        "self_check.cpp: capture",
        "if (checker == nullptr) return false;",
        "a check waits for the device",
        CHECK,
        (CHECKS + "test_a_capture_takes_the_generic_path_unless_checked_before",),
    ),
    Mutant(
        "others trust what is being checked",
        "self_check.cpp: known verdict",
        "if (known != all.verdicts.end()) return known->second != Verdict::kBad;",
        "nobody knows yet whether it is right",
        CHECK,
        (CHECKS + "test_other_threads_run_the_generic_path_meanwhile",),
    ),
    Mutant(
        "a forced path is that of all threads",
        "self_check.cpp: forced",
        "static Forced of_thread;",
        "a check forces paths while other threads call layers",
        CHECK,
        (CHECKS + "test_a_forced_path_is_of_one_thread",),
    ),
    Mutant(
        "the path stays on after a wait without end",
        "self_check.cpp: devices off",
        "",
        "the next wait has no end either",
        CHECK,
        LOST_LATER,
    ),
    Mutant(
        "a wait without end not forgotten",
        "self_check.cpp: forget the status",
        "return text;",
        "the next check finds it",
        CHECK,
        LOST_FIRST,
        lines=2,
    ),
    Mutant(
        "a wait without end turns nothing off",
        "self_check.cpp: said before",
        "if (text.empty()) return;",
        "the next wait has no end either",
        CHECK,
        LOST_LATER,
    ),
]
