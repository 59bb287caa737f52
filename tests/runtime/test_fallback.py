"""What runs where no compiled extension is, and the environment variables, in fresh processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FLOAT_ISAS, ISAS
from fresh_process import run_python
from helpers import HAS_EXTENSION, child_environment

import varlen_rnn

needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="there is no compiled extension")

USES_EVERYTHING = """
import warnings
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import varlen_rnn
    print("after import:", len(caught))
    for theirs in (nn.LSTM, nn.GRU):
        rnn = theirs(3, 5, 2, bidirectional=True, dtype=torch.float64)
        x = torch.randn(7, 3, 3, dtype=torch.float64)
        packed = pack_padded_sequence(x, [7, 4, 1])
        expected, expected_hx = rnn(packed)
        gradients = torch.autograd.grad(expected.data.square().sum(), list(rnn.parameters()))
        got, hx = varlen_rnn.convert(rnn)(packed)
        got_gradients = torch.autograd.grad(got.data.square().sum(), list(rnn.parameters()))
        with torch.no_grad():
            again, _ = rnn(packed)
        for a, b in ((got.data, expected.data), (again.data, expected.data), (hx, expected_hx),
                     (got_gradients, gradients)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
for warning in caught:
    print("warning:", warning.category.__name__, str(warning.message))
print("extension:", varlen_rnn.build_info()["extension"])
"""


def output_of(code: str, **environment: str) -> list[str]:
    result = run_python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_fallback_is_right_and_says_so_once_at_the_first_call() -> None:
    lines = output_of(USES_EVERYTHING, VARLEN_RNN_DISABLE_EXTENSION="1")
    assert lines == [
        "after import: 0",
        "warning: RuntimeWarning varlen_rnn: the compiled extension is not in use "
        "(VARLEN_RNN_DISABLE_EXTENSION is set); the plain PyTorch reference runs instead, "
        "with the same results but slower",
        "extension: False",
    ]


@needs_extension
@pytest.mark.parametrize("value", [None, "", "0"])
def test_the_extension_works_without_a_warning(value: str | None) -> None:
    environment = {} if value is None else {"VARLEN_RNN_DISABLE_EXTENSION": value}
    assert output_of(USES_EVERYTHING, **environment) == ["after import: 0", "extension: True"]


def test_build_info_says_why_the_extension_is_not_in_use() -> None:
    code = "import varlen_rnn; print(varlen_rnn.build_info())"
    (line,) = output_of(code, VARLEN_RNN_DISABLE_EXTENSION="1")
    expected = {
        "version": varlen_rnn.__version__,
        "extension": False,
        "reason": "VARLEN_RNN_DISABLE_EXTENSION is set",
    }
    assert line == str(expected)


@needs_extension
def test_the_cuda_kernels_can_be_turned_off_by_themselves() -> None:
    code = "import varlen_rnn; i = varlen_rnn.build_info(); print(i['extension'], i['cuda'])"
    expected = ["True VARLEN_RNN_DISABLE_CUDA is set"]
    assert output_of(code, VARLEN_RNN_DISABLE_CUDA="1") == expected
    assert output_of(code, VARLEN_RNN_DISABLE_CUDA="0") != expected


@needs_extension
@pytest.mark.parametrize(("value", "on"), [(None, True), ("", True), ("1", True), ("0", False)])
def test_the_switch_of_the_self_check(value: str | None, on: bool) -> None:
    code = "from varlen_rnn.runtime import extension; print(extension.CUDA_SELF_CHECK)"
    environment = {} if value is None else {"VARLEN_RNN_CUDA_SELF_CHECK": value}
    assert output_of(code, **environment) == [str(on)]


@needs_extension
def test_build_info_says_what_was_compiled_and_what_is_in_use(every_isa: str) -> None:
    info = varlen_rnn.build_info()
    assert info["extension"] is True
    assert info["cpu_isa"] == every_isa
    assert list(info["cpu_isas"]) == ISAS
    assert {"version", "torch_target_version", "compiler"} <= set(info)


@needs_extension
def test_instruction_sets_come_lowest_first_and_the_highest_is_in_use() -> None:
    order = ["baseline", "avx2", "avx2_vnni", "avx512", "avx512_vnni"]
    order += ["neon", "neon_dotprod", "neon_i8mm"]
    assert sorted(ISAS, key=order.index) == ISAS
    assert ISAS[0] in ("baseline", "neon")
    code = "import varlen_rnn; print(varlen_rnn.build_info()['cpu_isa'])"
    assert output_of(code) == [ISAS[-1]]


@needs_extension
def test_sets_that_add_instructions_for_integers_have_no_float_kernels_of_their_own() -> None:
    """Float tests run on ``FLOAT_ISAS``: the sets whose functions no lower set has."""
    assert [isa for isa in ISAS if "_" not in isa] == FLOAT_ISAS


@needs_extension
@pytest.mark.parametrize("name", ISAS)
def test_the_environment_forces_an_instruction_set(name: str) -> None:
    code = "import varlen_rnn; print(varlen_rnn.build_info()['cpu_isa'])"
    assert output_of(code, VARLEN_RNN_CPU_ISA=name) == [name]


AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
X86 = {
    "baseline": set(),
    "avx2": AVX2,
    "avx2_vnni": AVX2 | {"avx_vnni"},
    "avx512": AVX512,
    "avx512_vnni": AVX512 | {"avx512_vnni"},
}


@needs_extension
@pytest.mark.skipif("baseline" not in ISAS, reason="not an x86 CPU")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="not Linux")
def test_the_instruction_sets_are_those_that_linux_says() -> None:
    flags = set(re.findall(r"^flags\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)[0].split())
    assert set(ISAS) == {name for name, needed in X86.items() if needed <= flags}


@needs_extension
@pytest.mark.parametrize("name", ["sse9", "avx1024", "AVX2 ", "avx2,baseline"])
def test_an_unknown_instruction_set_in_the_environment_is_said_with_those_there_are(
    name: str,
) -> None:
    result = run_python("import varlen_rnn", VARLEN_RNN_CPU_ISA=name)
    assert result.returncode == 1
    message = f"ValueError: VARLEN_RNN_CPU_ISA must be one of {ISAS}, got '{name}'"
    assert result.stderr.splitlines()[-1] == message


@needs_extension
@pytest.mark.parametrize("name", ["sse9", "", "AVX2", "neon" if "avx2" in ISAS else "avx2"])
def test_an_unknown_or_unavailable_instruction_set_is_a_value_error(name: str) -> None:
    from varlen_rnn import _C

    before = _C.cpu_isa()
    with pytest.raises(ValueError, match="must be one of"):
        _C.set_cpu_isa(name)
    with pytest.raises(TypeError):
        _C.set_cpu_isa(2)
    assert _C.cpu_isa() == before


@needs_extension
def test_importing_before_torch_and_in_a_thread_works() -> None:
    code = """
import threading
def work():
    import varlen_rnn, torch
    print(tuple(varlen_rnn.VarLenLSTM(3, 5)(torch.zeros(2, 3))[0].shape))
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, env=child_environment(), text=True, timeout=120)
    assert printed == "(2, 5)\n"


@needs_extension
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_works_in_a_forked_child() -> None:
    code = """
import os, torch, varlen_rnn
torch.set_num_threads(1)
rnn, x = varlen_rnn.VarLenLSTM(3, 5), torch.ones(2, 4, 3)
expected = rnn(x)[0]
if os.fork() == 0:
    os._exit(0 if torch.equal(rnn(x)[0], expected) else 3)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert output_of(code) == ["0"]


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert varlen_rnn.__version__ == version("varlen_rnn") == varlen_rnn.build_info()["version"]
    assert torch.__version__


def test_sources_beside_no_compiled_extension_say_so(tmp_path: Path) -> None:
    shutil.copytree(
        Path(varlen_rnn.__file__).parent,
        tmp_path / "varlen_rnn",
        ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"),
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    # An editable install would find the module that is compiled elsewhere.
    code += "sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
    code += "import varlen_rnn; print(varlen_rnn.build_info()['reason'])"
    assert output_of(code) == [f"none is compiled in {tmp_path / 'varlen_rnn'}"]
