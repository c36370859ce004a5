"""The sticker world: stickers in rendered scenes; the same scene and seed give the same image."""

from dekag.stickers.captions import caption
from dekag.stickers.render import render, render_with_mask
from dekag.stickers.scene import ATTRIBUTES, Scene, random_scene
from dekag.stickers.topics import EDGE_STYLES, EDGE_SUBJECTS, TOPICS, Topic, topic_scene

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
    "render_with_mask",
    "topic_scene",
]
