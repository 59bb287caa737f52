"""The build of the CUDA part: its switches, its binary, how it is loaded, and the compile gate."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from helpers import HAS_EXTENSION, child_environment
from pretend_build import ROOT, SUFFIX, Project

import varlen_rnn
from varlen_rnn.runtime import extension

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="there is no compiled extension")
needs_cuda_part = pytest.mark.skipif(
    extension.CUDA_UNAVAILABLE is not None, reason=f"CUDA part: {extension.CUDA_UNAVAILABLE}"
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for package in ("cmake", "ninja", "pybind11"):
        pytest.importorskip(package)
    return Project(tmp_path)


def test_a_tool_is_found_on_path_where_its_package_has_none(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where pip builds: it puts the scripts of packages elsewhere."""
    (project.folder / "ninja.py").write_text('BIN_DIR = "/nowhere"')
    monkeypatch.syspath_prepend(project.folder)
    tools = project.folder / "path"
    tools.mkdir()
    for name, path in (("sh", None), ("ninja", sysconfig.get_path("scripts"))):
        (tools / name).symlink_to(shutil.which(name, path=path))
    for found in (True, False):
        result = project.build(VARLEN_RNN_CUDA="0", PATH=str(tools))
        (tools / "ninja").unlink(missing_ok=True)
        assert (result.returncode == 0) == found
        assert ("the build needs ninja" in result.stderr) == (not found)


@pytest.mark.parametrize("cuda", ["", "1"])
@pytest.mark.parametrize("release", ["12.1", "12.10", "13.0"])
def test_where_nvcc_works_the_cuda_part_is_built_for_what_nvcc_knows(
    project: Project, cuda: str, release: str
) -> None:
    result = project.build(CUDACXX=project.nvcc(release), VARLEN_RNN_CUDA=cuda)
    assert result.returncode == 0, result.stderr
    assert project.module.exists()
    assert project.cuda_module.read_text() == "75;80;86;90"


@pytest.mark.parametrize(
    ("text", "archs"), [("80", "80"), ("103;80", "80;103"), ("90,86,90", "86;90")]
)
def test_the_architectures_can_be_chosen(project: Project, text: str, archs: str) -> None:
    result = project.build(CUDACXX=project.nvcc(), VARLEN_RNN_CUDA_ARCHS=text)
    assert result.returncode == 0, result.stderr
    assert project.cuda_module.read_text() == archs


@pytest.mark.parametrize(
    ("capabilities", "archs"),
    [("9.0", "90"), (r"8.6\n8.0\n8.6", "80;86"), (r"6.1\n10.3", "103"), ("12.1", ""), (None, "")],
)
def test_native_is_what_the_gpus_of_this_machine_are(
    project: Project, capabilities: str | None, archs: str
) -> None:
    if capabilities:
        smi = project.folder / "path" / "nvidia-smi"
        smi.parent.mkdir()
        smi.write_text(f"#!/bin/sh\nprintf '{capabilities}\\n'\n")
        smi.chmod(0o755)
    elif shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    environment = {
        "CUDACXX": project.nvcc(),
        "PATH": os.pathsep.join([str(project.folder / "path"), os.environ["PATH"]]),
        "VARLEN_RNN_CUDA_ARCHS": "native",
    }
    result = project.build(**environment)
    assert result.returncode == 0, result.stderr
    assert project.module.exists()
    assert project.cuda_module.exists() == bool(archs)
    if archs:
        assert project.cuda_module.read_text() == archs
    else:
        assert "VARLEN_RNN_CUDA_ARCHS=native, and nvidia-smi shows no GPU" in result.stdout
        result = project.build(**environment, VARLEN_RNN_CUDA="1")
        assert result.returncode == 1
        assert "nvidia-smi shows no GPU" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("places", "taken"),
    [
        (("own", "home/bin", "path"), "own"),
        (("home/bin", "path"), "home/bin"),
        (("path",), "path"),
    ],
)
def test_nvcc_is_that_of_cudacxx_or_of_cuda_home_or_of_path(
    project: Project, places: tuple[str, ...], taken: str
) -> None:
    nvccs = {place: project.nvcc(folder=place) for place in places}
    result = project.build(
        CUDACXX=nvccs.get("own", ""),
        CUDA_HOME=str(project.folder / "home"),
        PATH=os.pathsep.join([str(project.folder / "path"), os.environ["PATH"]]),
    )
    assert result.returncode == 0, result.stderr
    assert f"varlen_rnn: building _C_cuda with {nvccs[taken]}\n" in result.stdout
    assert project.cuda_module.read_text() == "75;80;86;90"


def without_cuda(project: Project, case: str) -> dict[str, str]:
    """The environment of one way to have no CUDA part."""
    if case == "failing":
        return {"CUDACXX": project.nvcc(status=1)}
    if case == "not-nvcc":
        return {"CUDACXX": shutil.which("true") or ""}
    if case in ("11.8", "12.0"):
        return {"CUDACXX": project.nvcc(case)}
    if case == "switched-off":
        return {"CUDACXX": project.nvcc(), "VARLEN_RNN_CUDA": "0"}
    return {"CUDACXX": str(project.folder / "nowhere" / "nvcc")}


REASONS = [
    ("missing", "no nvcc found"),
    ("failing", "nvcc failed CMake's check"),
    ("not-nvcc", "/true is older than CUDA 12.1 or does not work"),
    ("11.8", "nvcc (CUDA 11.8) is older than CUDA 12.1 or does not work"),
    ("12.0", "nvcc (CUDA 12.0) is older than CUDA 12.1 or does not work"),
]


@pytest.mark.parametrize(("case", "said"), [*REASONS, ("switched-off", "")])
def test_without_a_cuda_part_the_rest_is_built_and_nothing_old_is_left(
    project: Project, case: str, said: str
) -> None:
    assert project.build(CUDACXX=project.nvcc()).returncode == 0
    assert project.cuda_module.exists()
    result = project.build(**without_cuda(project, case))
    assert result.returncode == 0, result.stderr
    assert project.module.exists()
    assert not project.cuda_module.exists()
    lines = [line for line in result.stdout.splitlines() if "WITHOUT the CUDA part" in line]
    assert len(lines) == (1 if said else 0)
    assert all(said in line for line in lines)


@pytest.mark.parametrize(("case", "said"), REASONS)
def test_the_cuda_part_can_be_demanded(project: Project, case: str, said: str) -> None:
    result = project.build(**without_cuda(project, case), VARLEN_RNN_CUDA="1")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("varlen_rnn: VARLEN_RNN_CUDA=1, but ")
    assert said in last


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VARLEN_RNN_CUDA", "2"),
        ("VARLEN_RNN_CUDA", "on"),
        ("VARLEN_RNN_CUDA_ARCHS", "70"),
        ("VARLEN_RNN_CUDA_ARCHS", "50;80"),
        ("VARLEN_RNN_CUDA_ARCHS", "90+PTX"),
        ("VARLEN_RNN_CUDA_ARCHS", "sm_90"),
        ("VARLEN_RNN_CUDA_ARCHS", "80;"),
    ],
)
def test_a_wrong_value_ends_the_build_with_one_line(
    project: Project, name: str, value: str
) -> None:
    result = project.build(CUDACXX=project.nvcc(), **{name: value})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"varlen_rnn: {name} must be ")
    assert line.endswith(f"got {value!r} (VARLEN_RNN_CUDA=0 leaves the CUDA part out)")
    assert not project.module.exists()


def test_a_cuda_part_without_the_extension_is_an_error(project: Project) -> None:
    result = project.build(VARLEN_RNN_EXTENSION="0", VARLEN_RNN_CUDA="1")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("varlen_rnn: VARLEN_RNN_CUDA=1, but ")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@needs_cuda_part
def test_build_info_says_what_was_compiled_and_for_which_device() -> None:
    cuda = varlen_rnn.build_info()["cuda"]
    assert isinstance(cuda, str)
    versions = r"compiled for sm_\d+(, sm_\d+)* by nvcc \d+\.\d+\.\d+ with runtime \d+\.\d+"
    compiled, device = cuda.split("; ")
    assert re.fullmatch(versions, compiled)
    if torch.version.cuda is None:
        assert device == "no device (torch is built without CUDA)"
    elif torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        assert device == f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    else:
        assert device.startswith("no device (")


BROKEN = """
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "varlen_rnn._C_cuda":
            raise {error}
sys.meta_path.insert(0, Finder)
import varlen_rnn
info = varlen_rnn.build_info()
print(info["extension"], info["cuda"])
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ImportError('undefined symbol: x')", "failed to load: undefined symbol: x"),
        ("ModuleNotFoundError('nothing there')", "not compiled"),
    ],
)
def test_the_rest_works_where_the_cuda_part_does_not_load(error: str, said: str) -> None:
    assert run_python(BROKEN.format(error=error)).stdout == f"True {said}\n"


@needs_cuda_part
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's loader")
def test_loading_does_not_touch_the_driver() -> None:
    loaded = run_python("import varlen_rnn", LD_DEBUG="libs").stderr
    assert "_C_cuda" in loaded
    assert "libcuda.so" not in loaded
    asked = "from varlen_rnn import _C_cuda; print(_C_cuda.device())"
    assert "libcuda.so" in run_python(asked, LD_DEBUG="libs").stderr


@needs_cuda_part
@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_the_binary_brings_its_cuda_runtime_and_links_no_other() -> None:
    (binary,) = (ROOT / "varlen_rnn").glob(f"_C_cuda{SUFFIX}")

    def readelf(*options: str) -> str:
        command = ["readelf", "--wide", *options, str(binary)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    dynamic = readelf("--dynamic")
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", dynamic))
    assert "libtorch_cpu" in needed
    system = {"libc", "libm", "libdl", "librt", "libpthread", "libstdc++", "libgcc_s"}
    assert {name for name in needed if not name.startswith("ld-")} <= {
        "libtorch_cpu",
        "libtorch",
        *system,
    }
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    symbols = re.findall(r"(GLOBAL|WEAK) +DEFAULT +(\w+) (\S+)", readelf("--dyn-syms"))
    defined = {name for _, section, name in symbols if section != "UND"}
    undefined = {name for _, section, name in symbols if section == "UND"}
    assert "PyInit__C_cuda" in defined
    assert not [name for name in defined | undefined if re.match(r"_*(cuda|cu[A-Z])", name)]
    assert os.fsencode(ROOT) not in binary.read_bytes()


GATE = ROOT / "tools" / "gpu" / "check_resources.py"
KERNEL = """
__global__ void {bounds} kernel(float* p) {{
  float values[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) p[threadIdx.x * 96 + i] = values[95 - i] * values[i / 2];
}}
"""


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ("__launch_bounds__(256, 1)", "1 kernels of 1 objects, 0 faults"),
        ("__launch_bounds__(1024, 1)", "bytes of register spills, expected 0"),
        ("", "no launch bounds"),
    ],
    ids=["good", "spills", "no-bounds"],
)
def test_the_compile_gate(tmp_path: Path, bounds: str, said: str) -> None:
    source, output = tmp_path / "kernel.cu", tmp_path / "kernel.o"
    source.write_text(KERNEL.format(bounds=bounds))
    (tmp_path / "cuda_objects.txt").write_text("kernel.o\n")
    nvcc = ["nvcc", "-arch=sm_80", "-c", str(source), "-o", str(output)]
    subprocess.run([sys.executable, str(GATE), "record", *nvcc], check=True)
    assert output.exists()
    checked = subprocess.run(
        [sys.executable, str(GATE), "check", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in checked.stdout.splitlines()[-1 if "faults" in said else -2]
    assert checked.returncode == (0 if "0 faults" in said else 1)
