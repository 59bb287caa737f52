"""What users install: a source distribution and a git URL, built by pip where it hides torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
from helpers import child_environment

ROOT = Path(__file__).parents[2]
PYTHON = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")
CALL = """
import torch, varlen_rnn
out, _ = varlen_rnn.VarLenGRU(3, 5)(torch.ones(4, 2, 3), lengths=[4, 1])
assert out.shape == (4, 2, 5) and not out[1:, 1].any()
print(varlen_rnn.build_info()["extension"], varlen_rnn.__file__)
"""


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """Its output; a failure shows it."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**child_environment(**variables), "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1500,
    )
    assert not result.returncode, result.stdout[-5000:]
    return result.stdout


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("**/site-packages")
    return found


def link_torch(into: Path) -> None:
    """Torch, NumPy and all that they require, as pip would have installed them there."""
    wanted, done = ["torch", "numpy"], set()
    while wanted:
        name = wanted.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        for part in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (into / part).exists():
                (into / part).symlink_to(package.locate_file(part))
        required = [re.match(r"[\w.-]+", r)[0] for r in package.requires or [] if "extra" not in r]
        wanted += [other for other in required if other not in done]
        done.add(name)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with torch and nothing of this package's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    link_torch(site_packages(folder))
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone of this working tree would have, and nothing that a build has left."""
    folder = tmp_path_factory.mktemp("clone")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, run(*listing, folder=ROOT).split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        run(*git, *command, folder=folder)
    return folder


def install(what: str | Path, environment: Path, folder: Path, **variables: str) -> tuple[str, str]:
    """By pip with its defaults; what it prints, and what importing the package says."""
    python = environment / PYTHON
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    # No Python on PATH that has another torch.
    variables |= {"VARLEN_RNN_CUDA": "0", "PATH": os.defpath}
    log = run(*pip, "install", "--verbose", what, folder=folder, **variables)
    assert not re.search(r"Collecting torch\b|Downloading .*torch-", log)
    said = run(python, "-W", "ignore", "-c", CALL, folder=folder)
    run(*pip, "uninstall", "--yes", "varlen_rnn", folder=folder)
    return log, said


def test_a_source_distribution_is_compiled(environment: Path, clone: Path, tmp_path: Path) -> None:
    """With torch's headers and libraries from where it is installed."""
    build = "import sys, build_backend; build_backend.build_sdist(sys.argv[1])"
    run(
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, 'csrc'); {build}",
        tmp_path,
        folder=clone,
    )
    (archive,) = tmp_path.glob("varlen_rnn-*.tar.gz")
    # Of another address every time, or pip would take a wheel that it has kept.
    folder = tmp_path / str(uuid.uuid4())
    folder.mkdir()
    archive = archive.rename(folder / archive.name)
    switches = {"VARLEN_RNN_EXTENSION": "1", "CXX": str(ROOT / "tests" / "hasty_c++")}
    log, said = install(archive, environment, tmp_path, **switches)
    assert re.search(rf"building _C with .*, torch .* in {site_packages(environment)}/torch\n", log)
    assert said.split() == ["True", str(site_packages(environment) / "varlen_rnn" / "__init__.py")]


def test_a_git_url_without_the_extension(environment: Path, clone: Path, tmp_path: Path) -> None:
    _, said = install(f"git+file://{clone}", environment, tmp_path, VARLEN_RNN_EXTENSION="0")
    assert said.startswith("False ")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "csrc")
    import build_backend

    return build_backend


def make_torch(folder: Path, version: str, *, headers: bool = True) -> Path:
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text(f"__version__ = '{version}'\n")
    if headers:
        (torch / "include" / "torch" / "csrc" / "stable").mkdir(parents=True)
    return torch


@pytest.mark.parametrize(
    ("version", "headers", "asks"),
    [
        ("2.10.0", True, False),
        ("2.13.0+cpu", True, False),
        ("3.0.1", True, False),
        ("2.9.1", True, True),
        ("1.13", True, True),
        ("2.13.0", False, True),
        (None, True, True),
    ],
)
def test_torch_is_asked_for_where_there_is_none_to_build_with(
    version: str | None,
    headers: bool,
    asks: bool,
    backend: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = [make_torch(tmp_path, version, headers=headers)] if version else []
    monkeypatch.delenv("VARLEN_RNN_EXTENSION", raising=False)
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setattr(backend, "_torch_folders", lambda: folders)
    for kind in ("wheel", "editable"):
        name = f"get_requires_for_build_{kind}"
        monkeypatch.setattr(backend.build_meta, name, lambda settings: ["others"])
        assert getattr(backend, name)() == ["others", *["torch>=2.10"] * asks]
    # What is not compiled needs no headers.
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert backend.get_requires_for_build_wheel() == ["others"]
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setenv("VARLEN_RNN_EXTENSION", "0")
    assert backend.get_requires_for_build_wheel() == ["others"]


def test_the_first_torch_that_can_be_built_with_is_taken(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_torch(tmp_path / "old", "2.9.0")
    first, second = make_torch(tmp_path / "a", "2.11"), make_torch(tmp_path / "b", "2.12")
    for folders, taken in (
        ([old, first, second], first),
        ([second, first], second),
        ([old], old),  # and the error says so
        ([], None),
    ):
        monkeypatch.setattr(backend, "_torch_folders", lambda folders=folders: folders)
        assert backend.find_torch() == taken


def test_where_torch_is_looked_for(
    backend: ModuleType, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, in its Python without pip's variables, and in those on PATH."""
    own = make_torch(tmp_path, "2.12")
    theirs = site_packages(environment) / "torch"
    nobody = tmp_path / "python3"
    nobody.write_text("no program")
    nobody.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "executable", str(environment / PYTHON))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(backend._torch_folders()) == [own, theirs]
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "executable", str(nobody))
    assert list(backend._torch_folders()) == []
    (tmp_path / "torch" / "__init__.py").unlink()  # what is left of one that was removed
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert list(backend._torch_folders()) == []
    monkeypatch.setenv("PATH", str((environment / PYTHON).parent))
    assert list(backend._torch_folders()) == [theirs]


@pytest.mark.parametrize(
    ("version", "got"), [("2.9.1", "got 2.9 in "), ("", "got no version in "), (None, "got none")]
)
def test_the_error_says_what_there_is_to_build_with(
    version: str | None, got: str, tmp_path: Path
) -> None:
    """Without isolation, where nobody has fetched one."""
    paths = [path for path in sys.path if not (Path(path) / "torch").exists()]
    if version is not None:
        paths.insert(0, str(make_torch(tmp_path, version).parent))
    python = environment_without_torch(tmp_path)
    result = subprocess.run(
        [python, "setup.py", "build_ext"],
        cwd=ROOT,
        env={**child_environment(), "PYTHONPATH": os.pathsep.join(paths), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    expected = f"the build needs torch 2.10 or newer with its headers, {got}"
    assert expected in result.stderr


def environment_without_torch(folder: Path) -> Path:
    venv.create(folder / "empty", with_pip=False)
    tools = [distribution(name) for name in ("setuptools", "pybind11", "cmake", "ninja")]
    for package in tools:
        for part in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            target = site_packages(folder / "empty") / part
            if not target.exists():
                target.symlink_to(package.locate_file(part))
    return folder / "empty" / PYTHON
