"""The limits of requests, shared by the gateway, the gRPC services, the client and the library.

A check returns its argument or raises InvalidInputError, which names the field as in REST (``link.cbr``).
The limits of the radio link belong to `dekag.link.LinkConditions`, those of a distillation to
`dekag.makd.config.RANGES`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from dekag.errors import InvalidInputError

_Number = TypeVar("_Number", int, float)
_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_PROMPT_CHARS = 1000
MAX_IMAGES = 10
"""Images per REST request."""
MAX_SEED = 2**63 - 1
MAX_SEEDS = 64
"""Images per request to the cloud."""
MIN_PIXELS, MAX_PIXELS = 64, 1024
PIXEL_STEP = 32
"""Width and height are multiples of it: the cloud's transformer splits the 8x latent into 4x4 patches."""
PIXEL_CODEC_STEP, PIXEL_CODEC_TILE = 8, 512
"""Of the codec of pixels: what sides are multiples of, and the longest side of a tile, pixels."""
MAX_CBR = 1 / 6
"""Of the codec of pixels; a codec of latents sends less."""
MIN_TARGET_PSNR_DB, MAX_TARGET_PSNR_DB = 5.0, 60.0
MAX_STEPS, MAX_GUIDANCE_SCALE, MAX_ADAPTER_SCALE = 100, 20.0, 2.0
"""Of the sampling of an image; see `dekag.generation.request.Sampling`."""
MAX_PREVIEWS = 3
"""Previews of one image."""
MAX_PAYLOAD_BYTES = MAX_PIXELS**2
"""Size of the image file of a conventional delivery; a profile's limit is one byte per pixel of its largest
image."""
MAX_PICTURE_BYTES = 8 * 2**20
"""Size of the file of a picture that a request sends."""
MAX_PICTURE_PIXELS = 2**20
"""Width times height of a picture that a request sends."""

TOPIC = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
MAX_TOPIC_CHARS = 32
RESERVED_TOPICS = ("auto", "none")
MAX_KNOWLEDGE = 4
"""Topics whose knowledge updates one request may combine."""
KNOWLEDGE_ALLOWED = f'"auto", "none", or 1 to {MAX_KNOWLEDGE} different topic names'
MAX_PROMPTS, MAX_TRIGGERS = 1000, 100
"""Prompts and triggers of a topic to distil."""
MAX_TRIGGER_CHARS, MAX_TRIGGERS_CHARS = 100, 2000
"""Characters of one trigger, and of all of a topic: every list of topics has them, and prompts are compared
with them."""
TRIGGERS_ALLOWED = (
    f"at most {MAX_TRIGGERS} of 1 to {MAX_TRIGGER_CHARS} characters each, {MAX_TRIGGERS_CHARS} in all"
)
MAX_ALTERNATIVES = 32
"""Alternatives in one of these prompts; limits the time to expand them."""
MAX_FILES = 8
"""Files of a published update or of published adapters."""

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
JOB_ID = re.compile(r"[0-9a-f]{32}")
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,200}")

WHOLE_TEXT = "text without unpaired surrogates"
"""What every text must be; Python reads bytes of the command line that are not UTF-8 as such surrogates."""


def check_prompt(prompt: str) -> str:
    """A prompt: 1 to 1000 characters, not only white space."""
    if _SURROGATE.search(prompt):
        raise InvalidInputError("prompt", WHOLE_TEXT, prompt)
    if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidInputError("prompt", f"1 to {MAX_PROMPT_CHARS} characters, not blank", prompt)
    return prompt


def check_seed(seed: int) -> int:
    """A seed: 0 to 2**63 - 1."""
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInputError("seed", "between 0 and 2**63 - 1", seed)
    return seed


def check_size(width: int, height: int, largest: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels: multiples of 32 from 64 to `largest`, which depends on the profile."""
    if any(not MIN_PIXELS <= side <= largest or side % PIXEL_STEP for side in (width, height)):
        allowed = f"multiples of {PIXEL_STEP} from {MIN_PIXELS} to {largest} pixels"
        raise InvalidInputError("size", allowed, f"{width}x{height}")
    return width, height


def check_cbr(cbr: float) -> float:
    """A channel bandwidth ratio: above 0, at most 1/6; a codec of latents sends less."""
    if not 0 < cbr <= MAX_CBR:  # also refuses NaN
        raise InvalidInputError("link.cbr", f"above 0 and at most 1/{1 / MAX_CBR:g}", cbr)
    return cbr


def check_target_psnr_db(psnr_db: float) -> float:
    """A target PSNR: 5 to 60 dB."""
    if not MIN_TARGET_PSNR_DB <= psnr_db <= MAX_TARGET_PSNR_DB:
        allowed = f"between {MIN_TARGET_PSNR_DB:g} and {MAX_TARGET_PSNR_DB:g} dB"
        raise InvalidInputError("link.target_psnr_db", allowed, psnr_db)
    return psnr_db


def check_negative_prompt(prompt: str) -> str:
    """A negative prompt: at most 1000 characters, or none."""
    if _SURROGATE.search(prompt):
        raise InvalidInputError("negative_prompt", WHOLE_TEXT, prompt)
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidInputError("negative_prompt", f"at most {MAX_PROMPT_CHARS} characters", prompt)
    return prompt


def check_steps(steps: int) -> int:
    """A number of denoising steps: 1 to 100."""
    return _within("steps", steps, 1, MAX_STEPS)


def check_guidance_scale(scale: float) -> float:
    """A classifier-free guidance scale: 0 to 20."""
    return _within("guidance_scale", scale, 0, MAX_GUIDANCE_SCALE)


def check_adapter_scale(scale: float) -> float:
    """A factor of the adapters of knowledge updates: 0 to 2."""
    return _within("adapter_scale", scale, 0, MAX_ADAPTER_SCALE)


def check_previews(count: int) -> int:
    """A number of previews: 0 to 3."""
    return _within("partial_images", count, 0, MAX_PREVIEWS)


def check_details(details: bool, measure: bool) -> bool:
    """Whether details are requested: only if quality is measured."""
    if details and not measure:
        allowed = "false when measure is false, as they contain the image that quality is measured against"
        raise InvalidInputError("details", allowed, details)
    return details


def _within(field: str, value: _Number, low: float, high: float) -> _Number:
    """The value; InvalidInputError if it is not within `low`..`high`, which NaN never is."""
    if not low <= value <= high:
        raise InvalidInputError(field, f"between {low:g} and {high:g}", value)
    return value


def check_payload_bytes(size: int, largest: int = MAX_PAYLOAD_BYTES) -> int:
    """The size of an image file in bytes: 1 to `largest`, which depends on the profile."""
    if not 0 < size <= largest:
        raise InvalidInputError("coding.payload_bytes", f"between 1 and {largest}", size)
    return size


def check_picture_bytes(size: int) -> int:
    """The size of a picture's file in bytes: 1 to 8 MiB."""
    if not 0 < size <= MAX_PICTURE_BYTES:
        raise InvalidInputError("picture", f"a file of 1 to {MAX_PICTURE_BYTES} bytes", f"{size} bytes")
    return size


def check_topic(name: str) -> str:
    """The name of a topic: 1 to 32 characters, neither "auto" nor "none"."""
    if TOPIC.fullmatch(name) is None or name in RESERVED_TOPICS:
        reserved = " or ".join(RESERVED_TOPICS)
        allowed = (
            f"1 to {MAX_TOPIC_CHARS} lower-case letters a to z, digits and inner hyphens, not {reserved}"
        )
        raise InvalidInputError("topic", allowed, name)
    return name


def check_trigger_lengths(triggers: Sequence[str]) -> Sequence[str]:
    """The triggers of a topic: at most 100 of 1 to 100 characters each, 2000 in all."""
    lengths = list(map(len, triggers))
    if len(lengths) > MAX_TRIGGERS or sum(lengths) > MAX_TRIGGERS_CHARS:
        raise InvalidInputError("triggers", TRIGGERS_ALLOWED, f"{len(lengths)} of {sum(lengths)} characters")
    for trigger, length in zip(triggers, lengths, strict=True):
        if not 1 <= length <= MAX_TRIGGER_CHARS:
            raise InvalidInputError("triggers", TRIGGERS_ALLOWED, trigger)
    return triggers


def check_knowledge(names: Sequence[str]) -> tuple[str, ...] | None:
    """The topics in a request: () for "none", None for "auto" or an empty list."""
    if list(names) in ([], ["auto"]):
        return None
    if list(names) == ["none"]:
        return ()
    try:
        if len(set(names)) == len(names) <= MAX_KNOWLEDGE:
            return tuple(check_topic(name) for name in names)
    except InvalidInputError:
        pass
    raise InvalidInputError("knowledge", KNOWLEDGE_ALLOWED, ", ".join(names))


def check_job_id(job_id: str) -> str:
    """The id of a job: 32 hexadecimal digits in lower case, or empty to have one assigned."""
    if job_id and not JOB_ID.fullmatch(job_id):
        raise InvalidInputError("job_id", "32 lower-case hexadecimal digits", job_id)
    return job_id


def pattern(of: re.Pattern[str]) -> str:
    """``of`` as a JSON schema pattern for the whole string."""
    return f"^{of.pattern}$"
