"""Generates services/proto from proto/: ``python scripts/generate_proto.py [--check]``.

First it updates the message LinkReport in user.proto from the model of that name in ``dekag.api.schemas``:
comments follow the descriptions there, and a new field gets the next number. A field that is not a number,
text or bool must be declared in user.proto by hand first.

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
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc

from dekag.api.schemas import LinkReport
from dekag.link import LinkConditions

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "services" / "proto"
PACKAGE = Path("dekag/v1")
REPORT = ROOT / "proto" / PACKAGE / "user.proto"
NOT_SENT = {"request_id", *LinkConditions.model_fields}  # the gateway adds the id; the link is a message
OTHER_FORM = {"gains", "scores"}  # keep their own comments
PLAIN: dict[Any, str] = {
    int: "uint32",
    float: "double",
    str: "string",
    bool: "bool",
    int | None: "optional uint32",
    float | None: "optional double",
    str | None: "optional string",
}


def _flat_imports(text: str) -> str:
    text = re.sub(r"^from dekag\.v1 import ", "from services.proto import ", text, flags=re.MULTILINE)
    text = re.sub(r"^import dekag\.v1\.(\w+)$", r"import services.proto.\1", text, flags=re.MULTILINE)
    return re.sub(r"\bdekag\.v1\.(\w+_pb2)\b", r"services.proto.\1", text)


def with_report(text: str) -> str:
    """user.proto with LinkReport as the REST model describes it; existing fields keep type and number."""
    head, opening, rest = text.partition("message LinkReport {\n")
    body, closing, tail = rest.partition("\n}\n")
    fields = re.findall(r"((?:  //.*\n)*)  (\S.*) (\w+) = (\d+);", body)
    if "\n".join(f"{said}  {kind} {name} = {at};" for said, kind, name, at in fields) != body:
        raise SystemExit("user.proto: LinkReport must hold one field a line, each below its comment")
    last = max(int(at) for *_, at in fields)
    known = {name for _, _, name, _ in fields} | NOT_SENT
    for name in [name for name in LinkReport.model_fields if name not in known]:
        kind = PLAIN.get(LinkReport.model_fields[name].annotation)
        if kind is None:
            raise SystemExit(f"user.proto: declare LinkReport.{name} by hand")
        fields.append(("", kind, name, str(last := last + 1)))
    lines = []
    for comment, kind, name, at in fields:
        described = LinkReport.model_fields[name].description if name in LinkReport.model_fields else None
        if described and name not in OTHER_FORM:
            words = textwrap.wrap(re.sub(r"\bnull\b", "unset", described), 115)
            comment = "".join(f"  // {line}\n" for line in words)
        lines.append(f"{comment}  {kind} {name} = {at};")
    return head + opening + "\n".join(lines) + closing + tail


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
    report = with_report(REPORT.read_text())
    if check and report != REPORT.read_text():
        sys.stderr.write("proto/dekag/v1/user.proto drifted from LinkReport in dekag/api/schemas.py\n")
        return 1
    if not check:
        REPORT.write_text(report)
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
