"""Publishes knowledge on the cloud's own machine: ``python -m services.cloud.publish FOLDER ...``.

A folder holds a codec's adapters, as written by ``dekag train cala``, or a topic's knowledge update, as
written by ``dekag train knowledge``. The command writes to the data folder in the settings, so write access
to it is the permission to publish. A cloud running on that data folder syncs the new version to Redis within
seconds; edges use it from the next request on. ``dekag publish`` does the same remotely, over REST, which
calls the functions in this module.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

from dekag import plugins
from dekag.artifacts import INFO, Artifact
from dekag.documents import read_json
from dekag.errors import DekagError, InvalidInputError, MismatchError, NotFoundError
from services.cloud.housekeeping import check_quotas
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import Manifest
from services.common.transmission import TransmissionManifest

if TYPE_CHECKING:
    from dekag.cala.artifact import TransmissionKnowledge
    from dekag.makd.update import KnowledgeUpdate
    from dekag.profile import Profile

_log = structlog.get_logger()
_Artifact = TypeVar("_Artifact", bound=Artifact)


def adapters_of(folder: Path) -> TransmissionKnowledge:
    """The adapters in a folder; NotFoundError if it does not exist, MismatchError if they are damaged."""
    from dekag.cala.artifact import TransmissionKnowledge

    _exists(folder)
    return TransmissionKnowledge.load(folder)


def update_of(folder: Path) -> KnowledgeUpdate:
    """The update in a folder; NotFoundError if it does not exist, MismatchError if it is damaged."""
    from dekag.makd.update import KnowledgeUpdate

    _exists(folder)
    return KnowledgeUpdate.load(folder)


def adapters_in(files: Mapping[str, bytes], codec_hash: str) -> TransmissionKnowledge:
    """Uploaded adapters for the codec with that hash.

    Raises:
        MismatchError: they are damaged, or fit another codec.
        InvalidInputError: there are other files.
    """
    from dekag.cala.artifact import TransmissionKnowledge

    return _uploaded(TransmissionKnowledge, files, codec_hash)


def update_in(files: Mapping[str, bytes], edge_hash: str) -> KnowledgeUpdate:
    """An uploaded update for the edge model with that hash.

    Raises:
        MismatchError: it is damaged, or fits another model.
        InvalidInputError: there are other files.
    """
    from dekag.makd.update import KnowledgeUpdate

    return _uploaded(KnowledgeUpdate, files, edge_hash)


def _uploaded(kind: type[_Artifact], files: Mapping[str, bytes], base_hash: str) -> _Artifact:
    known = (INFO, *kind.parts, *kind.beside)
    if unknown := sorted(files.keys() - set(known)):
        raise InvalidInputError("files", f"among {', '.join(known)}", ", ".join(unknown))
    return kind.from_files(files, base_hash=base_hash)


def try_out(knowledge: TransmissionKnowledge, codec: str, codec_hash: str) -> None:
    """Raises MismatchError unless the codec in that folder, with that hash, works with the adapters."""
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.codec import LatentCodec

    AlignedCodec(LatentCodec.load(codec), codec_hash, knowledge)


def publish_adapters(
    knowledge: TransmissionKnowledge, store: TransmissionStore, codec_hash: str, *, if_new: bool = False
) -> TransmissionManifest:
    """Publishes adapters as the current version for the codec with that hash.

    Args:
        knowledge: the adapters.
        store: where they are stored.
        codec_hash: hash of the codec that they must fit.
        if_new: do nothing if any version has the same content, current or not.

    Raises:
        MismatchError: they fit another codec.
        InvalidInputError: their method is unknown here.
    """
    if knowledge.base_hash != codec_hash:
        raise MismatchError(
            f"the adapters fit the codec {knowledge.base_hash[:12]}, not the profile's, {codec_hash[:12]}"
        )
    plugins.get("method", knowledge.method)
    return store.publish(knowledge, if_new=if_new)


def publish_update(update: KnowledgeUpdate, store: KnowledgeStore, edge_hash: str) -> Manifest:
    """Publishes a knowledge update as the current version of its topic, unless it is current already.

    An earlier version may be published again; it gets a new version number. The version has no sample images.

    Args:
        update: the update.
        store: where it is stored.
        edge_hash: hash of the edge model that it must fit.

    Raises:
        MismatchError: it fits another model.
    """
    if update.base_hash != edge_hash:
        raise MismatchError(
            f"the knowledge update fits the model {update.base_hash[:12]}, not the profile's edge, "
            f"{edge_hash[:12]}"
        )
    current = store.current(update.topic)
    if current is not None and current.content_hash == update.content_hash:
        return current
    job = f"published-{uuid.uuid4().hex}"
    return store.publish(job, update.info, update.content_hash, update.saved_files(), b"")


def publish_start_topics(
    topics: Sequence[str], profile: Profile, store: KnowledgeStore, edge_hash: str
) -> None:
    """Publishes the updates of topics that come with a profile, for topics that have none.

    Topics without an update in the profile are logged.

    Args:
        topics: their names.
        profile: whose updates to publish.
        store: where they are stored.
        edge_hash: hash of the profile's edge model.

    Raises:
        MismatchError: an update is damaged or fits another model.
    """
    published = store.topics()
    for topic in topics:
        if topic in published:
            continue
        if profile.knowledge is None or not (folder := Path(profile.knowledge) / topic).is_dir():
            _log.warning("the profile has no update of a topic in DEKAG_START_TOPICS", topic=topic)
            continue
        publish_update(update_of(folder), store, edge_hash)


def _exists(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}")


def _is_update(folder: Path) -> bool:
    """Whether knowledge.json in the folder names a topic; its content is validated later."""
    try:
        return "topic" in read_json(folder / INFO)
    except (InvalidInputError, TypeError):
        return False


def main(arguments: list[str]) -> int:
    """Publishes all folders; returns the exit status, 0 if all are current now."""
    if not arguments:
        sys.stderr.write("usage: python -m services.cloud.publish FOLDER ...\n")
        return 2
    for folder in map(Path, arguments):
        try:
            message = _publish_here(folder)
        except DekagError as error:
            sys.stderr.write(f"{folder}: {error}\n")
            return 1
        except OSError as error:
            sys.stderr.write(f"{error.filename} cannot be written: {error.strerror}\n")
            return 1
        sys.stdout.write(f"{message}\n")
    return 0


def _publish_here(folder: Path) -> str:
    """Publishes either kind to the data folder in the settings; returns a message."""
    from dekag.generation.loading import folder_hash, pipeline_hash
    from dekag.profile import load_profile
    from services.cloud.settings import CloudSettings

    settings = CloudSettings.read()
    profile, data_dir = load_profile(settings.profile, check_models=True), settings.data_dir.resolve()
    if _is_update(folder):
        update = update_of(folder)
        check_quotas(settings, update.topic)
        store, edge_hash = KnowledgeStore(settings.data_dir), pipeline_hash(profile.edge)
        manifest = publish_update(update, store, edge_hash)
        return f"version {manifest.version} of {update.topic} is current in {data_dir}: {update.content_hash}"
    check_quotas(settings, None)
    transmission = TransmissionStore(settings.data_dir)
    adapters = publish_adapters(adapters_of(folder), transmission, folder_hash(profile.codec))
    return f"version {adapters.version} is current in {data_dir}: {adapters.content_hash}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
