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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel, ValidationError

from dekag.api.schemas import (
    Consistency,
    Constellation,
    ImagesResponse,
    Job,
    JobList,
    KnowledgeList,
    KnowledgeManifest,
    LinkReport,
    Problem,
    Reports,
    Topic,
    Transmission,
)
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
_INFO = "knowledge.json"  # as dekag.artifacts, which needs safetensors, names it
_MAX_KNOWLEDGE_BYTES = 2**28  # the gateway has a smaller bound of its own
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


class UnreachableError(UnavailableError):
    """Nothing answers at the URL: no system runs there, or the network is down."""


class UnauthorizedError(DekagError):
    """The gateway wants an API key and got none that it knows."""


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
        request = {
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
        response = self._ask(ImagesResponse, "POST", "/v1/images/generations", _given(request))
        (image,) = response.data
        shown = image.details
        return Image(
            png=None if image.b64_json is None else base64.b64decode(image.b64_json),
            seed=image.seed,
            report=image.link_report,
            consistency=image.consistency,
            reference=None if shown is None else base64.b64decode(shown.reference_b64_json),
            constellation=None if shown is None else shown.constellation,
        )

    def reports(self, request_id: str) -> list[LinkReport]:
        """The link reports of an earlier request, in the order of its images; kept for an hour."""
        return self._ask(Reports, "GET", f"/v1/reports/{_segment(request_id)}").link_reports

    def knowledge(self) -> list[KnowledgeManifest]:
        """The current knowledge of each topic, in order of the topics' names."""
        return self._ask(KnowledgeList, "GET", "/v1/knowledge").data

    def samples(self, topic: str) -> bytes:
        """A PNG with pictures of held-out prompts; rows: cloud, edge before, edge after."""
        return self._send("GET", f"/v1/knowledge/{_segment(topic)}/samples").content

    def forget(self, topic: str) -> None:
        """Deletes all versions of the topic's knowledge; no later image uses it."""
        self._send("DELETE", f"/v1/knowledge/{_segment(topic)}")

    def transmission(self) -> Transmission:
        """The current transmission knowledge; NotFoundError if the codec works alone."""
        return self._ask(Transmission, "GET", "/v1/transmission")

    def publish(self, folder: str | os.PathLike[str]) -> Topic | Transmission:
        """Uploads knowledge and makes it the current version, which it may be already; returns that version.

        Args:
            folder: with a topic's knowledge update or a codec's adapters, as `dekag train` saves them. Of its
                files the JSON and safetensors are sent.
        """
        files = _knowledge_files(Path(folder))
        topic = _topic_of(Path(folder) / _INFO, files)
        request = {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}
        if topic is None:
            return self._ask(Transmission, "PUT", "/v1/transmission", request)
        return self._ask(Topic, "PUT", f"/v1/knowledge/{_segment(topic)}", request)

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
        words = {"prompts": list(prompts) or None, "triggers": list(triggers) or None}
        return self._ask(Job, "POST", "/v1/knowledge", _given({"topic": topic, **words, **config}))

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
        return self._ask(Job, "GET", f"/v1/jobs/{_segment(job_id)}")

    def jobs(self) -> list[Job]:
        """The latest jobs, the newest first."""
        return self._ask(JobList, "GET", "/v1/jobs").data

    def cancel(self, job_id: str) -> Job:
        """Cancels a job that is not over; nothing of it will be published."""
        return self._ask(Job, "DELETE", f"/v1/jobs/{_segment(job_id)}")

    def _ask(
        self, kind: type[_Model], method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> _Model:
        response = self._send(method, path, body)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            raise DekagError(f"{response.url} is no gateway") from None

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
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        text = f"{answer.url} answers {answer.status_code} and is no gateway"
        raise UnavailableError(text) if answer.status_code == 503 else DekagError(text) from None
    raise _error(answer, problem)


def _error(answer: httpx2.Response, problem: Problem) -> DekagError:
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
