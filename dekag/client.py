"""A client of a running system's REST interface: pictures with their link reports, topics and their jobs.

It needs no model and imports neither PyTorch nor the services.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dekag.errors import (
    ConflictError,
    DeadlineError,
    DekagError,
    ExhaustedError,
    FileError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from dekag.files import decoded, list_folder, read_bytes, read_text

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where `dekag up` and docker-compose.yml serve the REST interface."""
API_KEY, CA_FILE = "DEKAG_API_KEY", "DEKAG_CA_FILE"
"""Variables of the environment that hold what a Client is not given."""

_EVENT_TIMEOUT_S = 60.0  # the gateway sends something every 15 s
_RECONNECTS, _RECONNECT_S = 30, 1.0
_LONGEST_WAIT_S = 60  # a gateway that names a later time is not waited for
_OVER = ("finished", "failed", "cancelled")
_INFO = "knowledge.json"  # as dekag.artifacts, which needs safetensors, names it
_MAX_KNOWLEDGE_BYTES = 2**28  # the gateway has a smaller bound of its own
_T = TypeVar("_T")


class UnreachableError(UnavailableError):
    """Nothing answers at the URL: no system runs there, or the network is down."""


class UnauthorizedError(DekagError):
    """The gateway wants an API key and got none that it knows."""


class _Answer(BaseModel):
    """What the gateway returns; fields of a newer gateway that are not known here are left out."""

    model_config = ConfigDict(frozen=True)


class StageTime(_Answer):
    """Time that one stage took, s."""

    stage: str
    seconds: float


class HopTraffic(_Answer):
    """Bytes that crossed one hop, both directions."""

    hop: str
    sent_bytes: int


class ModulationAndCoding(_Answer):
    """How a conventional delivery was modulated and coded."""

    bits_per_symbol: int
    codeword_bits: int
    information_bits: int
    payload_bytes: int


class KnowledgeUse(_Answer):
    """A knowledge update that the edge drew with."""

    topic: str
    version: int
    content_hash: str


class PromptRead(_Answer):
    """How much of a prompt a model read, in tokens without start and end; of more than ``tokens_at_once``, in
    windows.
    """

    tokens: int
    tokens_read: int
    tokens_at_once: int


class LinkReport(_Answer):
    """What one image cost on its way and how well it arrived.

    Attributes:
        channel_uses: K, complex symbols sent, without pilots.
        pilot_uses: channel uses spent on pilots.
        cbr: (channel_uses + pilot_uses) / (3 * width * height).
        snr_db: mean Es/N0 per complex channel use as asked, dB.
        no: noise power per channel use; 0 over an ideal channel.
        gains: h_j as the receiver knew them, (real, imaginary).
        instantaneous_snr_db: mean |h_j|^2 / no, dB; None over an ideal channel.
        psnr_db: received image against what was sent, dB; None if not decoded.
        scores: of metrics that are plugged in.

    The other fields are as the REST interface's document, `/docs` of a running system, describes them.
    """

    request_id: str
    seed: int
    delivery: str
    decoded: bool
    channel_uses: int
    pilot_uses: int
    cbr: float
    snr_db: float
    fading: str
    tau_rms_s: float
    rician_k_db: float | None
    speed_m_s: float
    trace: str | None
    trace_start_s: float
    csi: str
    equalizer: str
    reported_snr_db: float | None
    no: float
    gains: list[tuple[float, float]]
    instantaneous_snr_db: float | None
    prompt_read: dict[str, PromptRead] = {}
    psnr_db: float | None
    scores: dict[str, float | None]
    stages: list[StageTime]
    hops: list[HopTraffic]
    model_hashes: dict[str, str]
    cached: bool
    knowledge: list[KnowledgeUse]
    modulation: str | None
    target_psnr_db: float | None
    expected_psnr_db: float | None
    coding: ModulationAndCoding | None
    image_format: str | None


class Constellation(_Answer):
    """The same symbols at three places, (real, imaginary); of more than 512 evenly spaced ones."""

    sent: list[tuple[float, float]]
    received: list[tuple[float, float]]
    equalized: list[tuple[float, float]]


class Consistency(_Answer):
    """An image as received against the cloud's own of the same prompt and seed: cosine similarities.

    Attributes:
        clip, dino: CLIP- and DINO-score.
        mean: of both.
        prompt_read: how much of the prompt the cloud read; None from older gateways.
    """

    clip: float
    dino: float
    mean: float
    prompt_read: PromptRead | None = None


@dataclass(frozen=True)
class Image:
    """One image as it arrived.

    Attributes:
        png: the file; None when a conventional delivery did not decode.
        seed: makes the same image again.
        report: what it cost and how well it arrived.
        consistency: None unless it was asked for, and for an image that did not decode.
        reference: PNG of what was sent; None unless details were asked for.
        constellation: None unless details were asked for.
    """

    png: bytes | None
    seed: int
    report: LinkReport
    consistency: Consistency | None = None
    reference: bytes | None = None
    constellation: Constellation | None = None


class Job(_Answer):
    """A distillation.

    Attributes:
        status: the last three are final.
        stage: "generate", "train" or "score"; None before the first.
        done: pictures or steps of this stage that are done, of at most ``total``.
        loss: smoothed training loss.
        error: why it failed.
        created: Unix time, s; likewise ``started`` and ``finished``.
        version: of the topic's knowledge that it made; None if that is kept aside.
        kept_aside: why the update of a finished job was not published; None unless it was not.
        scores: of the update on held-out prompts, once the job is finished.
    """

    id: str
    topic: str
    status: Literal["queued", "running", "finished", "failed", "cancelled"]
    stage: str | None
    done: int
    total: int
    loss: float | None
    error: str | None
    created: float
    started: float | None
    finished: float | None
    version: int | None
    kept_aside: str | None = None
    scores: dict[str, float] = {}

    @property
    def over(self) -> bool:
        """Whether it will not change any more."""
        return self.status in _OVER


class RunningConsistency(_Answer):
    """How consistent with the cloud's own the images of one version were that were sampled and compared.

    Attributes:
        samples: images that were compared.
        fresh: mean consistency of the first ones.
        recent: mean consistency of the last ones.
        drifting: whether it has fallen so far that the topic should be distilled anew.
    """

    samples: int
    fresh: float
    recent: float
    drifting: bool


class Knowledge(_Answer):
    """The current version of one topic's knowledge update.

    Attributes:
        content_hash: sha256 over everything in the update.
        base_hash: of the edge model that it fits.
        triggers: words or phrases that say that a prompt needs it.
        scores: on held-out prompts.
        created: Unix time, s.
        job: id of the job that made it.
        consistency: of the images that it drew; None as long as none was compared.
    """

    topic: str
    version: int
    content_hash: str
    base_hash: str
    triggers: list[str]
    size_bytes: int
    scores: dict[str, float]
    created: float
    job: str
    consistency: RunningConsistency | None


class Transmission(_Answer):
    """The current transmission knowledge: the adapters with which edge and user encode and decode.

    Attributes:
        content_hash: sha256 over everything in it.
        base_hash: of the codec that it fits.
        scores: on held-out pictures.
        created: Unix time of its publication, s.
    """

    version: int
    content_hash: str
    base_hash: str
    size_bytes: int
    scores: dict[str, float]
    created: float


class DistillOptions(TypedDict, total=False):
    """What a distillation is made with, as far as it is not the library's default.

    Attributes:
        images: pictures that the cloud draws to learn from.
        tokens: pseudo-tokens of the metaword.
        rank: of the LoRA.
        steps: optimiser steps at most.
        seed: seeds the cloud's pictures and the training.
        force: publish the update even if it is not better than what there is.
    """

    images: int
    tokens: int
    rank: int
    steps: int
    seed: int
    force: bool


class _FieldProblem(BaseModel):
    field: str
    allowed: str


class _Problem(BaseModel):
    title: str
    detail: str
    errors: list[_FieldProblem] = []


class Client:
    """A connection to one gateway; close it, or use it in a ``with`` statement.

    Every method raises a DekagError: InvalidInputError with the field and what it allows, NotFoundError,
    ConflictError, ExhaustedError (too much at once), UnavailableError, DeadlineError, UnauthorizedError, or
    DekagError itself for anything else that the gateway refuses; UnreachableError when nothing answers.

    Example:
        >>> from dekag import Client
        >>> with Client("http://127.0.0.1:8080") as client:
        ...     image = client.image("a red boat", seed=7, link={"snr_db": 20})
        >>> image.seed, image.report.snr_db
        (7, 20.0)

    Args:
        url: of the gateway, as `gateway_url` takes it.
        timeout_s: how long to wait for an answer, s.
        retries: how often a request that is refused for now (status 429 or 503 with Retry-After) is sent
            again, each time after the time that the gateway names.
        api_key: for a gateway that asks for one; ``DEKAG_API_KEY`` of the environment if left out.
        ca_file: certificate of the authority that the gateway's is from, if it is none that this machine
            knows; ``DEKAG_CA_FILE`` of the environment if left out.

    Raises:
        InvalidInputError: ``url`` is none of a gateway.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 90.0,
        retries: int = 0,
        api_key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        authority = ca_file or os.environ.get(CA_FILE, "").strip()
        self.url, self._retries = gateway_url(url, scheme="https" if authority else "http"), retries
        # the proxies of the environment are for the world outside, not for a system on this machine
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=timeout_s,
            trust_env=False,
            headers=authorization(api_key),
            verify=trusting(authority) if authority else True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def image(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        size: str | None = None,
        delivery: str | None = None,
        link: Mapping[str, Any] | None = None,
        knowledge: str | Sequence[str] | None = None,
        image_format: str | None = None,
        consistency: bool | None = None,
        details: bool | None = None,
        on_long_prompt: str | None = None,
    ) -> Image:
        """Has one image drawn and sent; what is left out takes the gateway's default.

        Args:
            prompt: what to draw.
            seed: seeds generation, fading and noise.
            size: "WIDTHxHEIGHT" in pixels.
            delivery: "semantic", "semantic-unaligned" or "conventional".
            link: the radio link: ``snr_db``, ``fading``, ``cbr`` and the other fields of the request's link.
            knowledge: "auto", "none", a topic or a list of topics.
            image_format: "webp", "avif" or "jpeg"; conventional delivery only.
            consistency: whether the image is to be compared with the cloud's own.
            details: whether the image that was sent and the constellation are to be returned.
            on_long_prompt: "read" or "refuse": what becomes of a prompt that the model does not read at once.
        """
        asked = {
            "prompt": prompt,
            "seed": seed,
            "size": size,
            "delivery": delivery,
            "link": None if link is None else dict(link),
            "knowledge": knowledge if knowledge is None or isinstance(knowledge, str) else list(knowledge),
            "image_format": image_format,
            "consistency": consistency,
            "details": details,
            "on_long_prompt": on_long_prompt,
        }
        (found,) = self._json("POST", "/v1/images/generations", _given(asked))["data"]
        png = None if found["b64_json"] is None else base64.b64decode(found["b64_json"])
        report = LinkReport.model_validate(found["link_report"])
        image = Image(png, found["seed"], report)
        if (compared := found.get("consistency")) is not None:  # older gateways have neither
            image = replace(image, consistency=Consistency.model_validate(compared))
        if (shown := found.get("details")) is not None:
            reference = base64.b64decode(shown["reference_b64_json"])
            constellation = Constellation.model_validate(shown["constellation"])
            image = replace(image, reference=reference, constellation=constellation)
        return image

    def reports(self, request_id: str) -> list[LinkReport]:
        """The link reports of an earlier request, in the order of its images; kept for an hour."""
        found = self._json("GET", f"/v1/reports/{_segment(request_id)}")["link_reports"]
        return TypeAdapter(list[LinkReport]).validate_python(found)

    def knowledge(self) -> list[Knowledge]:
        """The current knowledge of each topic, in order of the topics' names."""
        return TypeAdapter(list[Knowledge]).validate_python(self._json("GET", "/v1/knowledge")["data"])

    def samples(self, topic: str) -> bytes:
        """A PNG with pictures of held-out prompts; rows: cloud, edge before, edge after."""
        return self._send("GET", f"/v1/knowledge/{_segment(topic)}/samples").content

    def forget(self, topic: str) -> None:
        """Deletes all versions of the topic's knowledge; no later image uses it."""
        self._send("DELETE", f"/v1/knowledge/{_segment(topic)}")

    def transmission(self) -> Transmission:
        """The current transmission knowledge; NotFoundError if the codec works alone."""
        return Transmission.model_validate(self._json("GET", "/v1/transmission"))

    def publish(self, folder: str | os.PathLike[str]) -> Knowledge | Transmission:
        """Uploads knowledge and makes it the current version, which it may be already; returns that version.

        Args:
            folder: with a topic's knowledge update or a codec's adapters, as `dekag train` saves them. Of its
                files the JSON and safetensors are sent.
        """
        files = _knowledge_files(Path(folder))
        topic = _topic_of(Path(folder) / _INFO, files)
        asked = {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}
        if topic is None:
            return Transmission.model_validate(self._json("PUT", "/v1/transmission", asked))
        return Knowledge.model_validate(self._json("PUT", f"/v1/knowledge/{_segment(topic)}", asked))

    def distill(
        self,
        topic: str,
        *,
        prompts: Sequence[str] = (),
        triggers: Sequence[str] = (),
        **config: Unpack[DistillOptions],
    ) -> Iterator[Job]:
        """Starts a distillation at once; iterate to follow it: the job after each change, until it is over.

        A job that fails or is cancelled is no error here: the last state says so.

        Args:
            topic: its name.
            prompts: what the cloud draws to learn from; the embedded world's of that topic if there are none.
            triggers: words that say that a prompt needs the topic; its name if there are none.
            config: see DistillOptions.
        """
        return self.watch(self.start(topic, prompts=prompts, triggers=triggers, **config).id)

    def start(
        self,
        topic: str,
        *,
        prompts: Sequence[str] = (),
        triggers: Sequence[str] = (),
        **config: Unpack[DistillOptions],
    ) -> Job:
        """Starts a distillation, as ``distill`` does, and returns its job without following it."""
        said = {"prompts": list(prompts) or None, "triggers": list(triggers) or None}
        order = _given({"topic": topic, **said, **config})
        return Job.model_validate(self._json("POST", "/v1/knowledge", order))

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job as it is and after each change, until it is over; a stream that breaks off is resumed."""
        path = f"/v1/jobs/{_segment(job_id)}/events"
        for _ in range(_RECONNECTS):
            try:
                with self._http.stream("GET", path, timeout=_EVENT_TIMEOUT_S) as answer:
                    _check(answer)
                    for line in answer.iter_lines():
                        if line.startswith("data:"):
                            job = Job.model_validate_json(line.removeprefix("data:"))
                            yield job
                            if job.over:
                                return
            except (httpx2.TransportError, UnavailableError):
                pass
            time.sleep(_RECONNECT_S)
        raise UnavailableError(f"the system went away; job {job_id} may go on when it is back")

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return Job.model_validate(self._json("GET", f"/v1/jobs/{_segment(job_id)}"))

    def jobs(self) -> list[Job]:
        """The latest jobs, the newest first."""
        return TypeAdapter(list[Job]).validate_python(self._json("GET", "/v1/jobs")["data"])

    def cancel(self, job_id: str) -> Job:
        """Cancels a job that is not over; nothing of it will be published."""
        return Job.model_validate(self._json("DELETE", f"/v1/jobs/{_segment(job_id)}"))

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._send(method, path, body)
        try:
            found: dict[str, Any] = answer.json()
        except ValueError:
            raise DekagError(f"{answer.url} is no gateway") from None
        return found

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        for left in range(self._retries, -1, -1):
            try:
                answer = self._http.request(method, path, json=body)
            except httpx2.ReadTimeout as error:
                raise DeadlineError(f"no answer from {self.url} in time") from error
            except httpx2.TransportError as error:
                raise UnreachableError(f"no system answers at {self.url} ({error})") from error
            wait_s = _retry_after_s(answer)
            if (
                left == 0
                or wait_s is None
                or wait_s > _LONGEST_WAIT_S
                or answer.status_code not in (429, 503)
            ):
                break
            time.sleep(wait_s)
        return _check(answer)


def gateway_url(url: str, *, scheme: Literal["http", "https"] = "http") -> str:
    """The URL below which a gateway has its `/v1`, from what people write of it.

    It may end in `/` or, as the OpenAI client's does, in `/v1`.

    Args:
        url: as written.
        scheme: where it names none.

    Raises:
        InvalidInputError: it is no URL of a gateway.
    """
    text = url.strip()
    if "://" not in text and not re.match("https?:", text, re.IGNORECASE):
        text = f"{scheme}://{text.removeprefix('//')}"
    allowed = f"the URL of a gateway, such as {DEFAULT_URL}"
    try:
        parts = urlsplit(text)
        port = parts.port
        host = (parts.hostname or "").encode("idna" if not parts.netloc.startswith("[") else "ascii")
    except (ValueError, UnicodeError):
        raise InvalidInputError("url", allowed, url) from None
    strange = parts.query or parts.fragment or port == 0 or re.search(r"[\x00-\x20\\\\%]", text)
    if parts.scheme not in ("http", "https") or not host or strange:
        raise InvalidInputError("url", allowed, url)
    path = re.sub(r"/v1/*$", "", parts.path, flags=re.IGNORECASE).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower() if '@' not in parts.netloc else parts.netloc}{path}"


def _knowledge_files(folder: Path) -> dict[str, bytes]:
    """The files of knowledge in a folder, by name; FileError if there is none or one cannot be read."""
    names = [name for name in list_folder(folder) if name.endswith((".json", ".safetensors"))]
    if _INFO not in names:
        raise FileError(folder, f"holds no knowledge: there is no {_INFO} in it, as `dekag train` saves")
    return {name: read_bytes(folder / name, max_bytes=_MAX_KNOWLEDGE_BYTES) for name in names}


def _topic_of(info: Path, files: Mapping[str, bytes]) -> str | None:
    """The topic of a knowledge update; None of a codec's adapters."""
    try:
        said = json.loads(decoded(files[_INFO], str(info)))
        topic = said["topic"] if said.get("kind") is None else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FileError(info, "says neither that it is a topic's update nor a codec's adapters") from None
    if topic is not None and not isinstance(topic, str):
        raise FileError(info, "names no topic")
    return topic


def authorization(api_key: str | None = None) -> dict[str, str]:
    """The headers that show an API key, that of the environment if none is given; none without one."""
    key = (api_key or os.environ.get(API_KEY, "")).strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def trusting(ca_file: str | os.PathLike[str]) -> ssl.SSLContext:
    """What trusts the authority whose certificate is in that file; FileError if it holds none."""
    certificates = read_text(os.fspath(ca_file))
    try:
        return ssl.create_default_context(cadata=certificates)
    except (ssl.SSLError, ValueError) as error:
        raise FileError(os.fspath(ca_file), f"holds no certificate of an authority ({error})") from None


def _given(fields: Mapping[str, _T | None]) -> dict[str, _T]:
    return {name: value for name, value in fields.items() if value is not None}


def _segment(name: str) -> str:
    """``name`` as one segment of a path."""
    return quote(name, safe="")


def _retry_after_s(answer: httpx2.Response) -> int | None:
    said = answer.headers.get("Retry-After", "")
    return int(said) if said.isdecimal() else None


def _check(answer: httpx2.Response) -> httpx2.Response:
    """``answer`` unless it is a problem; raises the DekagError that the problem says."""
    if answer.is_success:
        return answer
    answer.read()
    try:
        problem = _Problem.model_validate_json(answer.content)
    except ValidationError:
        text = f"{answer.url} answers {answer.status_code} and is no gateway"
        raise UnavailableError(text) if answer.status_code == 503 else DekagError(text) from None
    raise _error(answer, problem)


def _error(answer: httpx2.Response, problem: _Problem) -> DekagError:
    match answer.status_code:
        case 422 if problem.errors:
            first = problem.errors[0]
            error = InvalidInputError(first.field, first.allowed, "")
            error.args = (problem.detail,)  # the gateway's own words, which name every field
            return error
        case 401:
            return UnauthorizedError(f"{problem.detail}; dekag takes it from {API_KEY}")
        case 429:
            return ExhaustedError(problem.detail, retry_after_s=_retry_after_s(answer))
        case 404:
            return NotFoundError(problem.detail)
        case 409:
            return ConflictError(problem.detail)
        case 503:
            return UnavailableError(problem.detail)
        case 504:
            return DeadlineError(problem.detail)
    return DekagError(f"{problem.title}: {problem.detail}")
