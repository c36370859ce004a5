"""Example requests in the OpenAPI document, which can be executed at `/docs`."""

from __future__ import annotations

from fastapi.openapi.models import Example

_FOUR_PIXELS = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQV"  # pragma: allowlist secret
    "R4nGP4z8DA8J+BkYHh////DAAe9gT9Ce00PgAAAABJRU5ErkJggg=="  # pragma: allowlist secret
)  # a PNG

IMAGES_EXAMPLES: dict[str, Example] = {
    "semantic": {
        "summary": "An image over a fading channel",
        "value": {
            "prompt": "a red car on the beach, pastel style",
            "seed": 7,
            "link": {"snr_db": 10, "fading": "rayleigh", "cbr": 1 / 96},
        },
    },
    "conventional": {
        "summary": "Conventional delivery: the cloud's image as a file over the same channel",
        "value": {
            "prompt": "a red car on the beach, pastel style",
            "seed": 7,
            "delivery": "conventional",
            "image_format": "webp",
            "link": {"snr_db": 10, "fading": "rayleigh"},
        },
    },
    "quality": {
        "summary": "The smallest rate that is expected to reach a given PSNR",
        "value": {
            "prompt": "a red car on the beach, pastel style",
            "seed": 7,
            "link": {"snr_db": 15, "cbr": "auto", "target_psnr_db": 24},
        },
    },
    "serving": {
        "summary": "An image whose quality is not measured, which saves computing time",
        "value": {
            "prompt": "a red car on the beach, pastel style",
            "measure": False,
            "link": {"snr_db": 10, "fading": "rayleigh"},
        },
    },
    "moving": {
        "summary": "Two images for a moving receiver that estimates the channel from pilots",
        "value": {
            "prompt": "a blue cat in the meadow, comic style",
            "n": 2,
            "knowledge": "none",
            "link": {"snr_db": 15, "fading": "tdl-c", "speed_m_s": 20, "csi": "pilots"},
        },
    },
}

PICTURE_EXAMPLES: dict[str, Example] = {
    "semantic": {
        "summary": "A small picture over a fading channel",
        "value": {
            "picture": _FOUR_PIXELS,
            "seed": 7,
            "link": {"snr_db": 10, "fading": "rayleigh", "cbr": 1 / 96},
        },
    },
    "conventional": {
        "summary": "The same as a file",
        "value": {"picture": _FOUR_PIXELS, "seed": 7, "delivery": "conventional", "link": {"snr_db": 10}},
    },
    "serving": {
        "summary": "The same without measuring the quality, which saves computing time",
        "value": {"picture": _FOUR_PIXELS, "measure": False, "link": {"snr_db": 10}},
    },
}

KNOWLEDGE_EXAMPLES: dict[str, Example] = {
    "known": {"summary": "A topic of the sticker world", "value": {"topic": "neon"}},
    "prompts": {
        "summary": "A custom topic",
        "value": {
            "topic": "crimson",
            "prompts": ["a crimson {car|house|tree|cat|fox} {on the beach|in the meadow|at night}"],
            "triggers": ["crimson"],
            "images": 48,
            "steps": 200,
        },
    },
}

PUBLISH_EXAMPLES: dict[str, Example] = {
    "update": {
        "summary": "A topic's knowledge update, shortened",
        "value": {"files": {"knowledge.json": "e30=", "update.safetensors": "AAAA"}},
    },
    "adapters": {
        "summary": "A codec's adapters, shortened",
        "value": {
            "files": {
                "knowledge.json": "e30=",
                "adapter_config.json": "e30=",
                "adapter_model.safetensors": "AAAA",
            }
        },
    },
}
