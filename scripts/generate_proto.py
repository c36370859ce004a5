"""Generates services/proto from proto/: ``python scripts/generate_proto.py [--check]``.

The protobuf package is ``dekag.v1``, the name of the library, so protoc's own module paths would collide
with it: the modules are laid flat into ``services/proto`` and their imports of each other rewritten.
``--check`` writes nothing and exits 1 when the committed files are not what the contracts generate.
"""

# The committed files come from grpcio-tools 1.85.1 and mypy-protobuf 5.1.0; other versions print other text.
from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "services" / "proto"
PACKAGE = Path("dekag/v1")


def _flat_imports(text: str) -> str:
    text = re.sub(r"^from dekag\.v1 import ", "from services.proto import ", text, flags=re.MULTILINE)
    text = re.sub(r"^import dekag\.v1\.(\w+)$", r"import services.proto.\1", text, flags=re.MULTILINE)
    return re.sub(r"\bdekag\.v1\.(\w+_pb2)\b", r"services.proto.\1", text)


def generate() -> dict[str, str]:
    """Runs protoc; returns the text of each generated module by its file name."""
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(sys.executable).parent
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={ROOT / 'proto'}",
                f"--proto_path={files('grpc_tools') / '_proto'}",
                f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
                f"--python_out={folder}",
                f"--grpc_python_out={folder}",
                f"--mypy_out=quiet:{folder}",
                f"--mypy_grpc_out=quiet:{folder}",
                *(
                    str(p.relative_to(ROOT / "proto"))
                    for p in sorted((ROOT / "proto" / PACKAGE).glob("*.proto"))
                ),
            ]
        )
        if status:
            raise SystemExit(status)
        return {p.name: _flat_imports(p.read_text()) for p in sorted((Path(folder) / PACKAGE).iterdir())}


def main() -> int:
    """Writes or checks the modules; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    check = parser.parse_args().check
    modules = generate()
    modules["__init__.py"] = '"""Generated from proto/ by scripts/generate_proto.py; do not edit."""\n'
    found = {p.name: p.read_text() for p in TARGET.glob("*.py*") if p.is_file()}
    drifted = sorted({n for n in found.keys() | modules.keys() if found.get(n) != modules.get(n)})
    if check:
        if drifted:
            sys.stderr.write(f"services/proto drifted from proto/: {', '.join(drifted)}\n")
        return bool(drifted)
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in found.keys() - modules.keys():
        (TARGET / name).unlink()
    for name, text in modules.items():
        (TARGET / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
