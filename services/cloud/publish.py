"""Makes knowledge current: ``python -m services.cloud.publish FOLDER ...``, or ``dekag publish FOLDER ...``.

A folder holds a codec's adapters, as ``dekag train cala`` writes them, or a topic's knowledge update, as
``dekag train knowledge`` does. It is written into the cloud's data folder, so whoever may do that may
publish, and nobody else. A running cloud finds the new version there and mirrors it to Redis within seconds;
edges use it from the next request on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dekag import plugins
from dekag.documents import read_json
from dekag.errors import DekagError, MismatchError, NotFoundError
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import Manifest
from services.common.transmission import TransmissionManifest


def publish(
    folder: Path, store: TransmissionStore, codec_hash: str, *, if_new: bool = False
) -> TransmissionManifest:
    """Makes the adapters in ``folder`` the current ones of the codec with that hash.

    Args:
        folder: what ``TransmissionKnowledge.save`` wrote.
        store: where they are kept.
        codec_hash: of the codec that they must fit.
        if_new: leave it at that if they were published before, current or not.

    Raises:
        NotFoundError: there is no such folder.
        MismatchError: they are damaged or fit another codec.
        InvalidInputError: they are of a method that is not known here.
    """
    from dekag.cala.artifact import TransmissionKnowledge

    _exists(folder)
    knowledge = TransmissionKnowledge.load(folder)
    if knowledge.base_hash != codec_hash:
        raise MismatchError(
            f"the adapters in {str(folder)!r} fit the codec {knowledge.base_hash[:12]}, not the profile's, "
            f"{codec_hash[:12]}"
        )
    plugins.get("method", knowledge.method)
    return store.publish(knowledge, if_new=if_new)


def publish_update(folder: Path, store: KnowledgeStore, edge_hash: str) -> Manifest:
    """Makes the knowledge update in ``folder`` the current one of its topic, unless it was published before.

    It comes without pictures that show what it does.

    Args:
        folder: what ``KnowledgeUpdate.save`` wrote.
        store: where it is kept.
        edge_hash: of the edge model that it must fit.

    Raises:
        NotFoundError: there is no such folder.
        MismatchError: it is damaged or fits another model.
    """
    from dekag.makd.update import KnowledgeUpdate

    _exists(folder)
    update = KnowledgeUpdate.load(folder)
    if update.base_hash != edge_hash:
        raise MismatchError(
            f"the knowledge update in {str(folder)!r} fits the model {update.base_hash[:12]}, not the "
            f"profile's edge, {edge_hash[:12]}"
        )
    of = f"published-{update.content_hash[:32]}"
    return store.publish(of, update.info, update.content_hash, update.to_files(), b"")


def publish_with_settings(folder: Path) -> Manifest | TransmissionManifest:
    """Publishes either kind into the data folder, for the profile, that the settings name."""
    from dekag.generation.models import folder_hash
    from dekag.generation.profile import load_profile
    from services.cloud.settings import CloudSettings

    settings = CloudSettings.read()
    profile = load_profile(settings.profile)
    if _is_update(folder):
        return publish_update(folder, KnowledgeStore(settings.data_dir), folder_hash(profile.edge.path))
    return publish(folder, TransmissionStore(settings.data_dir), folder_hash(profile.codec))


def _exists(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}")


def _is_update(folder: Path) -> bool:
    """Whether the folder says that it holds knowledge of a topic; what it says is checked later."""
    try:
        return "topic" in read_json(folder / "knowledge.json")
    except (OSError, TypeError):
        return False


def main(arguments: list[str]) -> int:
    """The exit status: 0 if all of it is current now."""
    if not arguments:
        sys.stderr.write("usage: python -m services.cloud.publish FOLDER ...\n")
        return 2
    for folder in arguments:
        try:
            manifest = publish_with_settings(Path(folder))
        except DekagError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        of = f"of {manifest.topic} " if isinstance(manifest, Manifest) else ""
        sys.stdout.write(f"version {manifest.version} {of}is current: {manifest.content_hash}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
