"""Make a release in dist/: wheel, hashed requirements, software bill of materials, licences, checksums.

=========================  ====================================================================
``dekag-*.whl``            the package, with its models
``requirements-hashed.txt``  what it needs, with hashes
``sbom.cdx.json``          packages, models and artwork with versions, hashes and licences (CycloneDX 1.6)
``LICENCES.md``            the same licences as a table
``SHA256SUMS``             of the files above
=========================  ====================================================================

Ends with an error if a package has no licence that is known, or its version differs from its pin.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hash_requirements import HASHED, pins
from packageurl import PackageURL
from packaging.markers import Marker

from dekag.checksums import GOLDEN
from dekag.documents import read_json

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
OWN = "Apache-2.0"
_ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\\n]+)(?: ; ([^\\\n]+))?", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_SHORT = 60  # characters of a licence's name; longer ones are its text


_hash = partial(HashTypeFactory().from_hashlib_alg, "sha256")


class ReleaseError(Exception):
    """The release cannot be made; the message says why."""


def licence_of(package: str) -> tuple[str, bool]:
    """The licence that an installed package declares, and whether it is an SPDX expression.

    Raises:
        ReleaseError: it declares none.
    """
    declared = metadata.metadata(package)
    if expression := declared.get("License-Expression"):
        return expression, True
    kinds = [
        each.rpartition("::")[2].strip()
        for each in declared.get_all("Classifier", [])
        if each.startswith("License ::")
    ]
    text = (declared.get("License") or "").strip()
    if text and "\n" not in text and len(text) <= _SHORT and text.lower() != "unknown":
        return text, False
    if not kinds:
        raise ReleaseError(f"{package} declares no licence")
    return ", ".join(kinds), False


def packages() -> Iterator[Component]:
    """The packages of this platform in requirements-hashed.txt, and PyTorch."""
    text, pinned = HASHED.read_text(), pins((ROOT / "constraints.txt").read_text())
    for entry in re.split(r"\n(?=[A-Za-z0-9])", text):
        found = _ENTRY.match(entry)
        if found is None or (found[3] and not Marker(found[3].strip()).evaluate()):
            continue
        yield _package(found[1], found[2], _HASH.findall(entry))
    yield _package("torch", pinned["torch"], [])


def _package(name: str, version: str, hashes: list[str]) -> Component:
    if (installed := metadata.version(name)).partition("+")[0] != version:
        raise ReleaseError(f"{name} {installed} is installed, and {version} is pinned: run `make install`")
    licence, is_expression = licence_of(name)
    acknowledged = LicenseAcknowledgement.DECLARED
    purl = PackageURL("pypi", name=name, version=version)
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[
            LicenseExpression(licence, acknowledgement=acknowledged)
            if is_expression
            else DisjunctiveLicense(name=licence, acknowledgement=acknowledged)
        ],
        # of every file of this version, of which pip takes the one for its platform
        hashes=[_hash(each) for each in hashes],
    )


def models(version: str) -> Iterator[Component]:
    """The models of each profile that is part of the package, with a hash of the hashes of their files."""
    for golden in sorted((ROOT / "models").glob(f"*/{GOLDEN}")):
        files = read_json(golden)["files"]
        listed = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
        name = f"models of the profile {golden.parent.name}"
        yield Component(
            name=name,
            version=version,
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=name,
            description=f"{len(files)} files; the hash is that of their hashes as `sha256sum` writes them",
            licenses=[DisjunctiveLicense(id=OWN)],
            hashes=[_hash(hashlib.sha256(listed.encode()).hexdigest())],
        )


def artwork() -> Component:
    """The artwork in the pictures that the models were trained on, as models/NOTICE names it."""
    notice = (ROOT / "models" / "NOTICE").read_text()
    found = re.search(r"^packaged for npm by \S+ as (\S+) ([0-9.]+):", notice, re.MULTILINE)
    licence = re.search(r"^Licence: (\S+)$", notice, re.MULTILINE)
    if found is None or licence is None:
        raise ReleaseError("models/NOTICE does not name the artwork and its licence")
    return Component(
        name=found[1],
        version=found[2],
        type=ComponentType.DATA,
        bom_ref=found[1],
        description="Artwork in the training pictures of the models; not part of the package.",
        licenses=[DisjunctiveLicense(id=licence[1])],
    )


def bill(version: str) -> tuple[str, list[Component]]:
    """The bill of materials as JSON, and its components.

    Raises:
        ReleaseError: a component's licence or version is not what it should be, or the bill is invalid.
    """
    bom = Bom()
    bom.metadata.component = Component(
        name="dekag",
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref="dekag",
        licenses=[DisjunctiveLicense(id=OWN)],
    )
    components = [*packages(), *models(version), artwork()]
    for component in components:
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, components)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ReleaseError(f"the bill of materials is invalid: {str(error)[:300]}")
    return text, components


def licences(version: str, components: list[Component]) -> str:
    """The table of licences."""
    rows = [f"| dekag | {version} | {OWN} |"]
    for component in components:
        (licence,) = component.licenses
        said = getattr(licence, "value", None) or getattr(licence, "id", None) or getattr(licence, "name", "")
        rows.append(f"| {component.name} | {component.version} | {said} |")
    head = "# Licences\n\nAs the packages declare them.\n\n| component | version | licence |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Makes the release."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    text, components = bill(version)
    (DIST / "sbom.cdx.json").write_text(text + "\n")
    (DIST / "LICENCES.md").write_text(licences(version, components))
    shutil.copy(HASHED, DIST)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", DIST, ROOT]
    subprocess.run(command, check=True)
    files = sorted(DIST.iterdir())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (DIST / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    try:
        main()
    except ReleaseError as error:
        sys.exit(str(error))
