"""Coverage-guided fuzzing of what reads artifacts: ``python -m tests.hostile.atheris_artifacts FOLDER ...``.

FOLDER holds whole artifacts, a folder each: "update", "compact-update" and "adapters". An input says which
file of which of them its bytes take the place of; the hash is made right again, so that what reads the file
meets them. All other arguments are libFuzzer's. Whatever is raised but MismatchError is a finding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

READ = [
    "dekag.artifacts",
    "dekag.makd.update",
    "dekag.makd.quantization",
    "dekag.cala.artifact",
    "dekag.cala.config",
]

with atheris.instrument_imports(include=READ):
    from dekag.artifacts import Artifact
    from dekag.cala.artifact import TransmissionKnowledge
    from dekag.errors import MismatchError
    from dekag.makd.update import KnowledgeUpdate
    from tests.hostile.artifacts import rehashed

READERS: dict[str, type[Artifact]] = {
    "update": KnowledgeUpdate,
    "compact-update": KnowledgeUpdate,
    "adapters": TransmissionKnowledge,
}


def main(arguments: list[str]) -> None:
    """Fuzzes until libFuzzer's limits are reached."""
    program, folder, *options = arguments
    whole = [(reader, reader.load(Path(folder) / name).to_files()) for name, reader in READERS.items()]
    places = [(reader, files, name) for reader, files in whole for name in sorted(files)]

    def try_one(data: bytes) -> None:
        if not data:
            return
        reader, files, name = places[data[0] % len(places)]
        try:
            reader.from_files(rehashed({**files, name: data[1:]}, reader.parts))
        except MismatchError:
            return

    seeds = Path(options[-1])  # libFuzzer's corpus: the files as they are
    for index, (_, files, name) in enumerate(places):
        (seeds / f"whole-{index}").write_bytes(bytes([index]) + files[name])
    atheris.Setup([program, *options], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
