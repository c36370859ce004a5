"""Makes a codec's adapters current: ``python -m services.cloud.publish FOLDER``, or ``dekag publish FOLDER``.

It writes into the cloud's data folder, so whoever may do that may publish, and nobody else. A running cloud
finds the new version there and mirrors it to Redis within seconds; edges use it from the next request on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dekag import plugins
from dekag.errors import DekagError, MismatchError, NotFoundError
from services.cloud.store import TransmissionStore
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

    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}")
    knowledge = TransmissionKnowledge.load(folder)
    if knowledge.base_hash != codec_hash:
        raise MismatchError(
            f"the adapters in {str(folder)!r} fit the codec {knowledge.base_hash[:12]}, not the profile's, "
            f"{codec_hash[:12]}"
        )
    plugins.get("method", knowledge.method)
    return store.publish(knowledge, if_new=if_new)


def publish_with_settings(folder: Path) -> TransmissionManifest:
    """``publish`` for the data folder and the profile that the settings name."""
    from dekag.generation.models import folder_hash
    from dekag.generation.profile import load_profile
    from services.cloud.settings import CloudSettings

    settings = CloudSettings()
    codec_hash = folder_hash(load_profile(settings.profile).codec)
    return publish(folder, TransmissionStore(settings.data_dir), codec_hash)


def main(arguments: list[str]) -> int:
    """The exit status: 0 if the adapters are current now."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m services.cloud.publish FOLDER\n")
        return 2
    try:
        manifest = publish_with_settings(Path(arguments[0]))
    except DekagError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"version {manifest.version} is current: {manifest.content_hash}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
