"""Hostile files of the largest upload, and the memory that reading them takes.

``python -m tests.hostile.memory FOLDER`` measures it, in a process of its own, as a peak never falls.
"""

from __future__ import annotations

import json
import resource
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dekag.artifacts import HISTORY, INFO, Artifact, content_hash
from dekag.cala.artifact import CONFIG, WEIGHTS, TransmissionKnowledge
from dekag.errors import MismatchError
from dekag.makd.quantization import _DICTIONARY, MAX_COMPONENTS, MAX_LAYERS
from dekag.makd.update import TENSORS, KnowledgeUpdate
from services.gateway.settings import GatewaySettings

Files = dict[str, bytes]
BYTES = GatewaySettings.model_fields["max_upload_bytes"].default
_MIB = 2**20
_REST = 64 * 1024  # of an upload, for its other parts
_UPDATE = {
    "format": 3,
    "topic": "neon",
    "triggers": ["neon"],
    "base_hash": "b" * 64,
    "guidance_scale": 1.5,
}
_ADAPTERS = {"format": 1, "kind": "transmission", "base_hash": "b" * 64}


def _update(tensors: dict[str, torch.Tensor] | bytes, **info: Any) -> Files:
    data = tensors if isinstance(tensors, bytes) else save(tensors)
    return _hashed({TENSORS: data}, {**_UPDATE, **info})


def _hashed(parts: Files, info: dict[str, Any]) -> Files:
    """The parts under a hash that is right."""
    said = {**info, "content_hash": content_hash(parts, info)}
    return {INFO: json.dumps(said).encode(), **parts}


def _layers(listed: dict[str, list[int]]) -> torch.Tensor:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_DICTIONARY)
    return _bytes(coder.compress(json.dumps(listed, separators=(",", ":")).encode()) + coder.flush())


def _values(numbers: int) -> torch.Tensor:
    """So many zeros, each of one bit."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    pieces = [coder.compress(b"\x7f" * min(_MIB, numbers - i)) for i in range(0, numbers, _MIB)]
    return _bytes(b"".join(pieces) + coder.flush())


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _compact(listed: dict[str, list[int]]) -> Files:
    numbers = sum(rank * (out + into) for rank, out, into in listed.values())
    steps = torch.full((sum(rank for rank, _, _ in listed.values()),), 100, dtype=torch.uint8)
    return _update({"layers": _layers(listed), "steps": steps, "values": _values(numbers)})


def _many_components() -> Files:
    """Each has a byte for its step, and two bits."""
    rank = (BYTES - _REST) * 4 // 5
    return _compact({"x": [rank, 1, 1]})


def _components_of_many_layers() -> Files:
    """As many as are allowed, and as long as fits."""
    rank = MAX_COMPONENTS // MAX_LAYERS
    width = (BYTES - MAX_COMPONENTS - 2 * _REST) * 8 // MAX_COMPONENTS // 2
    return _compact({f"{i:x}": [rank, width, width] for i in range(MAX_LAYERS)})


def _many_layers() -> Files:
    return _compact({f"{i:x}": [1, 1, 1] for i in range(300_000)})


def _as_many_layers_as_are_allowed() -> Files:
    return _compact({f"{i:x}": [1, 1, 1] for i in range(MAX_LAYERS)})


def _one_long_row() -> Files:
    return _compact({"x": [1, (BYTES - _REST) * 8 - 1, 1]})


def _two_long_rows() -> Files:
    return _compact({"x": [2, (BYTES - _REST) * 4 - 2, 2]})


def _exact_numbers() -> Files:
    width = (BYTES - _REST) // 4 // 256
    numbers = torch.zeros(2 * 256 * width).half()
    return _update({"layers": _layers({"x": [256, width, width]}), "values": numbers})


def _exact_components() -> Files:
    rank = (BYTES - _REST) // 4
    return _update({"layers": _layers({"x": [rank, 1, 1]}), "values": torch.zeros(2 * rank).half()})


def _words() -> Files:
    rows = (BYTES - _REST) // 2
    return _update({"metaword": torch.zeros(1, 1).half(), "words": torch.zeros(rows, 1).half()})


def _words_of_four_bits() -> Files:
    rows = 2**21
    return _update({"words": torch.full((rows, 2), 100, dtype=torch.uint8)})


def _metaword() -> Files:
    return _update({"metaword": torch.full((2, 2**21), 100, dtype=torch.uint8)})


def _triggers() -> Files:
    triggers = [f"{i:x}" for i in range(BYTES // 10)]
    return _update({"metaword": torch.zeros(1, 1).half()}, triggers=triggers)


def _names_of_tensors() -> bytes:
    """A header of as many empty tensors as fit."""
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{i:x}": empty for i in range(BYTES // 66)}, separators=(",", ":")).encode()
    return len(header).to_bytes(8, "little") + header


def _empty_tensors() -> Files:
    return _update(_names_of_tensors())


def _nested(size: int) -> bytes:
    """JSON of the smallest values that take the most memory."""
    return b'{"x":[' + b"[]," * (size // 3) + b"[]]}"


def _document() -> Files:
    return {INFO: _nested(BYTES - _REST)}


def _history() -> Files:
    return {**_update({"metaword": torch.zeros(1, 1).half()}), HISTORY: _nested(BYTES - _REST)}


def _adapters(config: bytes, weights: bytes, **info: Any) -> Files:
    parts = {CONFIG: config, WEIGHTS: weights} if config else {WEIGHTS: weights}
    return _hashed(parts, {**_ADAPTERS, **info})


def _weights() -> bytes:
    return save({"x": torch.zeros(1).half()})


def _adapters_empty() -> Files:
    return _adapters(b"{}", _names_of_tensors())


def _adapters_document() -> Files:
    return _adapters(_nested(BYTES - _REST), _weights())


CASES: dict[str, tuple[type[Artifact], Callable[[], Files]]] = {
    make.__name__.lstrip("_"): (kind, make)
    for kind, makers in (
        (
            KnowledgeUpdate,
            (
                _many_components, _exact_components, _many_layers, _words, _words_of_four_bits, _triggers,
                _empty_tensors, _document, _history,
            ),
        ),
        (TransmissionKnowledge, (_adapters_empty, _adapters_document)),
        # these are read: the most that can be
        (
            KnowledgeUpdate,
            (
                _as_many_layers_as_are_allowed, _exact_numbers, _metaword, _one_long_row, _two_long_rows,
                _components_of_many_layers,
            ),
        ),
    )
    for make in makers
}  # fmt: skip


def main(parent: Path) -> None:
    """Reads the cases in the subfolders, and prints as JSON what each came to and the peak so far, MiB.

    The files are made by another process: making them takes memory, too.
    """
    KnowledgeUpdate.from_files(_compact({"x": [1, 2, 2]}))  # what is imported late
    before = _peak_mib()
    for name, (kind, _) in CASES.items():
        files = {path.name: path.read_bytes() for path in (parent / name).iterdir()}
        try:
            kind.from_files(files)
            refused = ""
        except MismatchError as error:
            refused = str(error)
        said = {"case": name, "refused": refused, "mib": round(_peak_mib() - before, 1)}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
