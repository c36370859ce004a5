"""Write requirements-hashed.txt: the packages of `dekag[all]`, pinned, with the SHA-256 of their files.

And deploy/requirements-hashed.txt, those of them that deploy/Dockerfile installs, of `dekag[services]`.
The versions are those of constraints.txt, the hashes those of the files on the index that uv asks (PyPI, or
UV_DEFAULT_INDEX). The file names no index: whichever serves the same files can be used. PyTorch and the
packages that only it needs are left out, as other indices serve other builds of the same version.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HASHED, HASHED_IN_IMAGE = ROOT / "requirements-hashed.txt", ROOT / "deploy" / "requirements-hashed.txt"
_OF_PYTORCH = re.compile(r"(torch|triton|nvidia-.+|cuda-.+)==")
_HEAD = """\
# Written by `make constraints`; do not edit. PyTorch is installed apart: docs/security.md#dependencies
"""


def compile_requirements(extra: str) -> str:
    """What uv resolves for an extra of dekag on every supported Python and platform, with hashes."""
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", extra,
        "--constraints", "constraints.txt", "--generate-hashes", "--universal", "--python-version", "3.11",
        "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet",
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def without_pytorch(text: str) -> str:
    """The requirements without PyTorch and what only it needs."""
    entries = re.split(r"\n(?=\S)", text.strip())
    return "".join(f"{entry}\n" for entry in entries if not _OF_PYTORCH.match(entry))


def pins(text: str) -> dict[str, str]:
    """Versions by normalised name, of the requirements in a file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\\n]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


if __name__ == "__main__":
    for path, extra in ((HASHED, "all"), (HASHED_IN_IMAGE, "services")):
        path.write_text(_HEAD + without_pytorch(compile_requirements(extra)))
