"""The worlds that models are trained on: their images, captions and image size.

A world is a package; this module is its interface to training. Its models are those of the profile of the
same name under models/.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.errors import NotFoundError

COMBINED_SHARE = 0.08  # probability of each kind of combination where combinations are known


def _code(source: str) -> str:
    """The syntax tree of a module without its docstrings, as text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            del body[0]
    return ast.dump(tree)


@contextmanager
def artwork_needed() -> Iterator[None]:
    """Turns the error of missing artwork into one that commands show in a line."""
    from dekag.stickers.assets import AssetsError

    try:
        yield
    except AssetsError as error:
        raise NotFoundError(str(error)) from None


@dataclass(frozen=True)
class World:
    """A world to train on.

    Attributes:
        profile: profile of its models.
        package: package that renders its images.
        size: side of its images, pixels.
    """

    profile: str
    package: str
    size: int

    @property
    def module(self) -> Any:
        """The package."""
        return importlib.import_module(self.package)

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """The values of each attribute of a scene."""
        words: dict[str, tuple[str, ...]] = self.module.ATTRIBUTES
        return words

    @property
    def optional(self) -> dict[str, tuple[str, ...]]:
        """The values of optional attributes: an accessory, a second subject."""
        names = {field.name for field in fields(self.module.Scene)} - set(self.attributes)
        accessories = tuple(name for name in self.combinations if name != "duo")
        words = {"companion": self.attributes["subject"], "accessory": accessories}
        return {name: words[name] for name in sorted(names)}

    def edge_knows(self, scene: Any) -> bool:
        """Whether the scene may be in the edge's training data: it contains no topic."""
        absent = all(getattr(scene, name) is None for name in self.optional)
        return (
            absent and scene.subject in self.module.EDGE_SUBJECTS and scene.style in self.module.EDGE_STYLES
        )

    @cached_property
    def version(self) -> str:
        """The first twelve hex digits of a hash of the package's code, to identify its images.

        Comments and docstrings do not count: rewording one must not cost half an hour of rendering.
        """
        digest = hashlib.sha256()
        for file in sorted(Path(self.module.__file__).parent.rglob("*.py")):
            digest.update(f"{file.name}\0{_code(file.read_text())}".encode())
        return digest.hexdigest()[:12]

    def known(self, *, cloud: bool) -> dict[str, Any]:
        """Arguments of `random_scene` for the training data of the cloud, or of the edge."""
        if cloud:
            return {"subjects": self.attributes["subject"], "styles": self.attributes["style"]} | (
                {"combinations": True} if self.combinations else {}
            )
        return {"subjects": self.module.EDGE_SUBJECTS, "styles": self.module.EDGE_STYLES}

    def scenes(self, *, cloud: bool) -> Callable[[random.Random], Any]:
        """Draws random scenes such as those that the cloud, or the edge, was trained on."""
        return partial(self.random_scene, **self.known(cloud=cloud))

    @property
    def combinations(self) -> tuple[str, ...]:
        """Topics that combine known things: accessories, and a second subject ("duo")."""
        return tuple(t.name for t in self.module.TOPICS.values() if t.kind == "combination")

    @property
    def vocabularies(self) -> tuple[Mapping[str, str], ...]:
        """The words of each vocabulary topic."""
        return tuple(t.words for t in self.module.TOPICS.values() if t.kind == "vocabulary")

    def random_scene(
        self, rng: random.Random, *, subjects: Any = None, styles: Any = None, combinations: bool = False
    ) -> Any:
        """A random scene; `subjects` and `styles` restrict it, `combinations` sometimes adds such a topic."""
        chosen: dict[str, Any] = {
            "subjects": subjects or self.attributes["subject"],
            "styles": styles or self.attributes["style"],
        }
        if combinations:
            for name in self.combinations:
                if rng.random() < COMBINED_SHARE:
                    chosen |= {"companions": 1.0} if name == "duo" else {"accessory": name}
                    break
        return self.module.random_scene(rng, **chosen)

    def render(self, scene: Any, seed: int) -> npt.NDArray[np.uint8]:
        """The image of a scene, (size, size, 3) uint8; NotFoundError without the world's artwork."""
        with artwork_needed():
            pixels: npt.NDArray[np.uint8] = self.module.render(scene, seed, size=self.size)
        return pixels

    @property
    def has_masks(self) -> bool:
        """Whether the package renders subject masks."""
        return hasattr(self.module, "render_with_mask")

    def mask(self, scene: Any, seed: int) -> npt.NDArray[np.uint8]:
        """The subject mask of that image, (size, size) uint8, 0..255; NotFoundError as `render`."""
        with artwork_needed():
            mask: npt.NDArray[np.uint8] = self.module.render_with_mask(scene, seed, size=self.size)[1]
        return mask

    def caption(self, scene: Any, rng: random.Random, *, cloud: bool) -> str:
        """A training caption; those of the cloud use each vocabulary topic with probability 1/4."""
        words: dict[str, str] = {}
        if cloud:
            for vocabulary in self.vocabularies:
                if rng.random() < 0.25:
                    words |= vocabulary
        text: str = self.module.caption(scene, rng, words)
        return text

    def edge_captions(self, count: int, seed: int) -> list[str]:
        """Captions of `count` random scenes that the edge knows, none of them held out of training."""
        rng, draw = random.Random(seed), self.scenes(cloud=False)
        captions: list[str] = []
        while len(captions) < count:
            if not (scene := draw(rng)).held_out:
                captions.append(self.caption(scene, rng, cloud=False))
        return captions


STICKERS = World("stickers", "dekag.stickers", 256)
WORLDS = {world.profile: world for world in (STICKERS,)}
