"""Makes knowledge current on the machine of the cloud: ``python -m services.cloud.publish FOLDER ...``.

A folder holds a codec's adapters, as ``dekag train cala`` writes them, or a topic's knowledge update, as
``dekag train knowledge`` does. It is written into the data folder that the settings name, so whoever may do
that may publish. A running cloud that has this data folder finds the new version there and mirrors it to
Redis within seconds; edges use it from the next request on. ``dekag publish`` does the same with a system
that runs anywhere, over its REST interface, which comes to the functions here, too.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dekag import plugins
from dekag.artifacts import INFO, Artifact
from dekag.documents import read_json
from dekag.errors import DekagError, InvalidInputError, MismatchError, NotFoundError
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import Manifest
from services.common.transmission import TransmissionManifest

if TYPE_CHECKING:
    from dekag.cala.artifact import TransmissionKnowledge
    from dekag.makd.update import KnowledgeUpdate

_Artifact = TypeVar("_Artifact", bound=Artifact)


def adapters_of(folder: Path) -> TransmissionKnowledge:
    """The adapters in a folder; NotFoundError if there is none, MismatchError if they are damaged."""
    from dekag.cala.artifact import TransmissionKnowledge

    _exists(folder)
    return TransmissionKnowledge.load(folder)


def update_of(folder: Path) -> KnowledgeUpdate:
    """The knowledge update in a folder; NotFoundError if there is none, MismatchError if it is damaged."""
    from dekag.makd.update import KnowledgeUpdate

    _exists(folder)
    return KnowledgeUpdate.load(folder)


def adapters_in(files: Mapping[str, bytes]) -> TransmissionKnowledge:
    """Adapters that were uploaded; MismatchError if they are damaged, InvalidInputError of other files."""
    from dekag.cala.artifact import TransmissionKnowledge

    return _uploaded(TransmissionKnowledge, files)


def update_in(files: Mapping[str, bytes]) -> KnowledgeUpdate:
    """The update that was uploaded; MismatchError if it is damaged, InvalidInputError of other files."""
    from dekag.makd.update import KnowledgeUpdate

    return _uploaded(KnowledgeUpdate, files)


def _uploaded(kind: type[_Artifact], files: Mapping[str, bytes]) -> _Artifact:
    known = (INFO, *kind.parts)
    if unknown := sorted(files.keys() - set(known)):
        raise InvalidInputError("files", f"of {', '.join(known)}", ", ".join(unknown))
    return kind.from_files(files)


def try_out(knowledge: TransmissionKnowledge, codec: str, codec_hash: str) -> None:
    """MismatchError unless the codec in that folder, whose hash that is, works with the adapters."""
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.codec import LatentCodec

    AlignedCodec(LatentCodec.load(codec), codec_hash, knowledge)


def publish_adapters(
    knowledge: TransmissionKnowledge, store: TransmissionStore, codec_hash: str, *, if_new: bool = False
) -> TransmissionManifest:
    """Makes adapters the current ones of the codec with that hash.

    Args:
        knowledge: the adapters.
        store: where they are kept.
        codec_hash: of the codec that they must fit.
        if_new: leave it at that if they were published before, current or not.

    Raises:
        MismatchError: they fit another codec.
        InvalidInputError: they are of a method that is not known here.
    """
    if knowledge.base_hash != codec_hash:
        raise MismatchError(
            f"the adapters fit the codec {knowledge.base_hash[:12]}, not the profile's, {codec_hash[:12]}"
        )
    plugins.get("method", knowledge.method)
    return store.publish(knowledge, if_new=if_new)


def publish_update(update: KnowledgeUpdate, store: KnowledgeStore, edge_hash: str) -> Manifest:
    """Makes a knowledge update the current one of its topic, unless it is that already.

    What was current once may be published again: it becomes a version of its own. It comes without pictures
    that show what it does.

    Args:
        update: the update.
        store: where it is kept.
        edge_hash: of the edge model that it must fit.

    Raises:
        MismatchError: it fits another model.
    """
    if update.base_hash != edge_hash:
        raise MismatchError(
            f"the knowledge update fits the model {update.base_hash[:12]}, not the profile's edge, "
            f"{edge_hash[:12]}"
        )
    current = store.topics().get(update.topic)
    if current is not None and current.content_hash == update.content_hash:
        return current
    of = f"published-{uuid.uuid4().hex}"
    return store.publish(of, update.info, update.content_hash, update.to_files(), b"")


def _exists(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}")


def _is_update(folder: Path) -> bool:
    """Whether the folder says that it holds knowledge of a topic; what it says is checked later."""
    try:
        return "topic" in read_json(folder / INFO)
    except (InvalidInputError, TypeError):
        return False


def main(arguments: list[str]) -> int:
    """The exit status: 0 if all of it is current now."""
    if not arguments:
        sys.stderr.write("usage: python -m services.cloud.publish FOLDER ...\n")
        return 2
    for folder in map(Path, arguments):
        try:
            said = _publish_here(folder)
        except DekagError as error:
            sys.stderr.write(f"{folder}: {error}\n")
            return 1
        except OSError as error:
            sys.stderr.write(f"{error.filename} cannot be written: {error.strerror}\n")
            return 1
        sys.stdout.write(f"{said}\n")
    return 0


def _publish_here(folder: Path) -> str:
    """Publishes either kind into the data folder, for the profile, that the settings name; says so."""
    from dekag.generation.models import folder_hash
    from dekag.generation.profile import load_profile
    from services.cloud.settings import CloudSettings

    settings = CloudSettings.read()
    profile, place = load_profile(settings.profile), settings.data_dir.resolve()
    if _is_update(folder):
        store, edge_hash = KnowledgeStore(settings.data_dir), folder_hash(profile.edge.path)
        found = publish_update(update_of(folder), store, edge_hash)
        return f"version {found.version} of {found.topic} is current in {place}: {found.content_hash}"
    adapters = adapters_of(folder)
    made = publish_adapters(adapters, TransmissionStore(settings.data_dir), folder_hash(profile.codec))
    return f"version {made.version} is current in {place}: {made.content_hash}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
