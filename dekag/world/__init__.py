"""The embedded world: storybook scenes drawn from words, the same picture for the same seed."""

from dekag.world.captions import caption
from dekag.world.render import render
from dekag.world.scene import ATTRIBUTES, Scene, random_scene
from dekag.world.topics import EDGE_STYLES, EDGE_SUBJECTS, TOPICS, Topic

__all__ = [
    "ATTRIBUTES",
    "EDGE_STYLES",
    "EDGE_SUBJECTS",
    "TOPICS",
    "Scene",
    "Topic",
    "caption",
    "random_scene",
    "render",
]
