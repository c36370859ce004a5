"""A client of the REST interface of a running system: images, link reports, topics and jobs.

It needs no models and imports neither PyTorch nor the services.
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

from dekag.api.limits import MAX_PICTURE_BYTES, WHOLE_TEXT
from dekag.api.schemas import (
    Consistency,
    Constellation,
    Demand,
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
"""Address at which `dekag up` and docker-compose.yml serve the REST interface."""
API_KEY, CA_FILE = "DEKAG_API_KEY", "DEKAG_CA_FILE"
"""Environment variables with the defaults of `api_key` and `ca_file`."""

_EVENT_TIMEOUT_S = 60.0  # the gateway sends something every 15 s
_RECONNECTS, _RECONNECT_S = 30, 1.0
_LONGEST_WAIT_S = 60  # a longer wait than this is not attempted
_LONGEST_TIMEOUT_S = 24 * 60 * 60
_INFO = "knowledge.json"  # as dekag.artifacts, which needs safetensors, names it
_MAX_KNOWLEDGE_BYTES = 2**28  # the gateway has a smaller limit
_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\%\ud800-\udfff]")
_SENDABLE = f"{WHOLE_TEXT}, a finite number, or a list or mapping of these"
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


class UnreachableError(UnavailableError):
    """Nothing responds at the URL: no system runs there, or the network is down."""


class UnauthorizedError(DekagError):
    """The gateway requires an API key, and the given key is missing or unknown."""


@dataclass(frozen=True)
class Image:
    """A received image.

    Attributes:
        png: the file, a PNG unless another output format was requested; None if decoding of a conventional
            delivery failed.
        seed: seed of the image; the same request with it gives the same image.
        report: cost and quality of the transmission.
        consistency: None unless requested, and None for an image that was not decoded.
        reference: PNG of the sent image; None unless details were requested.
        constellation: None unless details were requested.
    """

    png: bytes | None
    seed: int
    report: LinkReport
    consistency: Consistency | None = None
    reference: bytes | None = None
    constellation: Constellation | None = None


class DistillOptions(TypedDict, total=False):
    """Settings of a distillation; omitted ones have the defaults of the library.

    Attributes:
        images: number of training images that the cloud generates.
        tokens: number of pseudo-tokens of the metaword.
        rank: rank of the LoRA.
        steps: largest number of optimiser steps of the full form.
        seed: seed of the cloud's images and of the training.
        force: publish the update even if it is not better than the current version.
    """

    images: int
    tokens: int
    rank: int
    steps: int
    seed: int
    force: bool


class Client:
    """A connection to one gateway; close it, or use it in a ``with`` statement.

    Every method raises a DekagError on failure: InvalidInputError with the field and its allowed values,
    NotFoundError, ConflictError, ExhaustedError (too many requests), UnavailableError, DeadlineError,
    UnauthorizedError, UnreachableError if nothing responds, or DekagError itself for any other rejection and
    for answers that are not a gateway's.

    Example:
        >>> from dekag import Client
        >>> with Client("http://127.0.0.1:8080") as client:
        ...     image = client.image("a red car", seed=7, link={"snr_db": 20})
        >>> image.seed, image.report.snr_db
        (7, 20.0)

    Args:
        url: URL of the gateway, in any form that `gateway_url` accepts.
        timeout_s: time limit of a response, s; above 0, at most a day.
        retries: how often to repeat a request that is rejected with status 429 or 503 and Retry-After, each
            time after the interval in Retry-After, unless that exceeds 60 s; at least 0. `watch` and
            `distill` reconnect to the events of a job without it.
        api_key: API key, if the gateway requires one; default: the environment variable ``DEKAG_API_KEY``.
        ca_file: certificate of the authority that issued the gateway's certificate, if this machine does not
            trust it already; default: the environment variable ``DEKAG_CA_FILE``.

    Raises:
        InvalidInputError: ``url`` is not the URL of a gateway, or another argument is out of range.
        FileError: ``ca_file`` contains no certificate.
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
        if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:  # also refuses NaN
            raise InvalidInputError("timeout_s", f"above 0 and at most {_LONGEST_TIMEOUT_S} s", timeout_s)
        if not isinstance(retries, int) or retries < 0:
            raise InvalidInputError("retries", "an integer of at least 0", retries)
        authority = ca_file or os.environ.get(CA_FILE, "").strip()
        self.url, self._retries = gateway_url(url, scheme="https" if authority else "http"), retries
        # trust_env=False: proxies of the environment are not meant for a system on this machine
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
        measure: bool | None = None,
        details: bool | None = None,
        on_long_prompt: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        adapter_scale: float | None = None,
        output_format: str | None = None,
        output_compression: int | None = None,
    ) -> Image:
        """Requests one image; omitted arguments have the defaults of the gateway.

        Args:
            prompt: description of the image.
            seed: seed of generation, fading and noise.
            size: "WIDTHxHEIGHT" in pixels.
            delivery: "semantic", "semantic-unaligned" or "conventional".
            link: the radio link: ``snr_db``, ``fading``, ``cbr`` and the other fields of the request's link.
            knowledge: "auto", "none", a topic or a list of topics.
            image_format: "webp", "avif" or "jpeg"; conventional delivery only.
            consistency: whether to compare the image with the cloud's image.
            measure: whether to measure the image against the sent one; without, ``report.psnr_db`` is None.
            details: whether to return the image before transmission and the constellation as well.
            on_long_prompt: "read" or "refuse": handling of a prompt that exceeds the model's window.
            steps: number of denoising steps.
            guidance_scale: classifier-free guidance.
            negative_prompt: what the image is guided away from; requires guidance above 1.
            adapter_scale: factor of the low-rank adapters of knowledge updates; 0: none.
            output_format: "png", "jpeg" or "webp".
            output_compression: quality of a JPEG or WebP file, 0 to 100.
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
            "measure": measure,
            "details": details,
            "on_long_prompt": on_long_prompt,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "adapter_scale": adapter_scale,
            "output_format": output_format,
            "output_compression": output_compression,
        }
        return self._image("/v1/images/generations", _given(request))

    def picture(
        self,
        picture: str | os.PathLike[str] | bytes,
        *,
        prompt: str | None = None,
        seed: int | None = None,
        delivery: str | None = None,
        link: Mapping[str, Any] | None = None,
        image_format: str | None = None,
        measure: bool | None = None,
        details: bool | None = None,
    ) -> Image:
        """Sends a picture of your own; omitted arguments have the defaults of the gateway.

        Args:
            picture: path of a PNG, JPEG, WebP, AVIF, BMP or PPM file, or its contents.
            prompt: what it shows: side information.
            seed: seed of fading and noise.
            delivery: "semantic", "semantic-unaligned", "pixels" or "conventional".
            link: the radio link, as for `image`.
            image_format: "webp", "avif" or "jpeg"; conventional delivery only.
            measure: whether to measure the picture against the sent one; without, ``report.psnr_db`` is None.
            details: whether to return the picture before transmission and the constellation as well.
        """
        if not isinstance(picture, bytes):
            picture = read_bytes(Path(picture), max_bytes=MAX_PICTURE_BYTES)
        request = {
            "picture": base64.b64encode(picture).decode(),
            "prompt": prompt,
            "seed": seed,
            "delivery": delivery,
            "link": None if link is None else dict(link),
            "image_format": image_format,
            "measure": measure,
            "details": details,
        }
        return self._image("/v1/pictures", _given(request))

    def reports(self, request_id: str) -> list[LinkReport]:
        """The link reports of an earlier request, in the order of its images; kept for an hour."""
        return self._ask(Reports, "GET", f"/v1/reports/{_segment('request_id', request_id)}").link_reports

    def knowledge(self) -> list[KnowledgeManifest]:
        """The current knowledge of each topic, in order of the topics' names."""
        return self._ask(KnowledgeList, "GET", "/v1/knowledge").data

    def demand(self) -> Demand:
        """The demand for each topic, and what the demand policy decides for its next request."""
        return self._ask(Demand, "GET", "/v1/demand")

    def samples(self, topic: str) -> bytes:
        """A PNG with images of held-out prompts; rows: cloud, edge before, edge after."""
        return self._send("GET", f"/v1/knowledge/{_segment('topic', topic)}/samples").content

    def forget(self, topic: str) -> None:
        """Deletes all versions of the topic's knowledge; no later image uses it."""
        self._send("DELETE", f"/v1/knowledge/{_segment('topic', topic)}")

    def transmission(self) -> Transmission:
        """The current transmission knowledge; NotFoundError if the codec has no adapters."""
        return self._ask(Transmission, "GET", "/v1/transmission")

    def publish(self, folder: str | os.PathLike[str]) -> Topic | Transmission:
        """Uploads knowledge and makes it the current version; returns that version.

        Uploading the current version again has no effect.

        Args:
            folder: folder of a topic's knowledge update or a codec's adapters, as `dekag train` saves them;
                its JSON and safetensors files are uploaded.
        """
        files = _knowledge_files(Path(folder))
        topic = _topic_of(Path(folder) / _INFO, files)
        request = {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}
        if topic is None:
            return self._ask(Transmission, "PUT", "/v1/transmission", request)
        return self._ask(Topic, "PUT", f"/v1/knowledge/{_segment('topic', topic)}", request)

    def distill(
        self,
        topic: str,
        *,
        prompts: Sequence[str] = (),
        triggers: Sequence[str] = (),
        **config: Unpack[DistillOptions],
    ) -> Iterator[Job]:
        """Starts a distillation immediately; iterate to follow its job after each change, until it ends.

        A job that fails or is cancelled raises no error; its last state reports it.

        Args:
            topic: name of the topic.
            prompts: prompts of the training images; if empty, those of the topic of that name in the
                profile, or else in the sticker world.
            triggers: words that select the topic for a prompt; if empty, those of the topic in the profile or
                the sticker world; with ``prompts``, its name.
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
        """Starts a distillation like ``distill``, but returns its job without following it."""
        words = {"prompts": list(prompts) or None, "triggers": list(triggers) or None}
        return self._ask(Job, "POST", "/v1/knowledge", _given({"topic": topic, **words, **config}))

    def watch(self, job_id: str) -> Iterator[Job]:
        """The state of the job, now and after each change until it ends; reconnects if needed."""
        path = f"/v1/jobs/{_segment('job_id', job_id)}/events"
        for _ in range(_RECONNECTS):
            try:
                with self._http.stream("GET", path, timeout=_EVENT_TIMEOUT_S) as answer:
                    _check(answer)
                    for line in answer.iter_lines():
                        if line.startswith("data:"):
                            job = _read(Job, line.removeprefix("data:"), answer)
                            yield job
                            if job.over:
                                return
            except (httpx2.RequestError, UnavailableError):
                pass
            time.sleep(_RECONNECT_S)
        raise UnavailableError(f"the system went away; job {job_id} may go on when it is back")

    def job(self, job_id: str) -> Job:
        """The current state of the job."""
        return self._ask(Job, "GET", f"/v1/jobs/{_segment('job_id', job_id)}")

    def jobs(self) -> list[Job]:
        """The latest jobs, newest first."""
        return self._ask(JobList, "GET", "/v1/jobs").data

    def cancel(self, job_id: str) -> Job:
        """Cancels a job that has not ended; it publishes nothing."""
        return self._ask(Job, "DELETE", f"/v1/jobs/{_segment('job_id', job_id)}")

    def _ask(
        self, kind: type[_Model], method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> _Model:
        response = self._send(method, path, body)
        return _read(kind, response.content, response)

    def _image(self, path: str, body: Mapping[str, Any]) -> Image:
        """The image of a response with one."""
        response = self._send("POST", path, body)
        try:
            (image,) = _read(ImagesResponse, response.content, response).data
            shown = image.details
            return Image(
                png=None if image.b64_json is None else base64.b64decode(image.b64_json),
                seed=image.seed,
                report=image.link_report,
                consistency=image.consistency,
                reference=None if shown is None else base64.b64decode(shown.reference_b64_json),
                constellation=None if shown is None else shown.constellation,
            )
        except ValueError:  # no image or several, or no base64
            raise _foreign(response) from None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        content = None if body is None else _to_json(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        for left in range(self._retries, -1, -1):
            try:
                answer = self._http.request(method, path, content=content, headers=headers)
            except httpx2.ReadTimeout as error:
                raise DeadlineError(f"no answer from {self.url} in time") from error
            except httpx2.TransportError as error:
                raise UnreachableError(f"no system answers at {self.url} ({error})") from error
            except httpx2.RequestError as error:
                raise DekagError(f"{self.url} is no gateway ({error})") from error
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
    """The base URL of a gateway, without `/v1`, in normalised form.

    The given URL may end in `/` or, as for the OpenAI client, in `/v1`.

    Args:
        url: URL as given by a user.
        scheme: scheme if ``url`` has none.

    Raises:
        InvalidInputError: it is not the URL of a gateway.
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
    strange = _NOT_IN_A_URL.search(text) or parts.query or parts.fragment or port == 0
    if parts.scheme not in ("http", "https") or not host or strange:
        raise InvalidInputError("url", allowed, url)
    path = re.sub(r"/v1/*$", "", parts.path, flags=re.IGNORECASE).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower() if '@' not in parts.netloc else parts.netloc}{path}"


def _knowledge_files(folder: Path) -> dict[str, bytes]:
    """The knowledge files in a folder, by name; FileError if there are none or one cannot be read."""
    names = [name for name in list_folder(folder) if name.endswith((".json", ".safetensors"))]
    if _INFO not in names:
        raise FileError(folder, f"holds no knowledge: there is no {_INFO} in it, as `dekag train` saves")
    return {name: read_bytes(folder / name, max_bytes=_MAX_KNOWLEDGE_BYTES) for name in names}


def _topic_of(info: Path, files: Mapping[str, bytes]) -> str | None:
    """The topic of a knowledge update; None for a codec's adapters."""
    try:
        said = json.loads(decoded(files[_INFO], str(info)))
        topic = said["topic"] if said.get("kind") is None else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FileError(info, "says neither that it is a topic's update nor a codec's adapters") from None
    if topic is not None and not isinstance(topic, str):
        raise FileError(info, "names no topic")
    return topic


def authorization(api_key: str | None = None) -> dict[str, str]:
    """The header with the API key, by default that of the environment; empty without a key.

    Raises:
        InvalidInputError: a key of the gateway cannot have these characters; the message does not show them.
    """
    key = (api_key or os.environ.get(API_KEY, "")).strip()
    if re.fullmatch("[!-~]*", key) is None:
        name = "api_key" if api_key else API_KEY
        raise InvalidInputError(name, "printable ASCII characters without spaces", "a key with others")
    return {"Authorization": f"Bearer {key}"} if key else {}


def trusting(ca_file: str | os.PathLike[str]) -> ssl.SSLContext:
    """A TLS context that trusts the certificate authority in that file; FileError if it contains none."""
    certificates = read_text(os.fspath(ca_file))
    try:
        return ssl.create_default_context(cadata=certificates)
    except (ssl.SSLError, ValueError) as error:
        raise FileError(os.fspath(ca_file), f"holds no certificate of an authority ({error})") from None


def _given(fields: Mapping[str, _T | None]) -> dict[str, _T]:
    return {name: value for name, value in fields.items() if value is not None}


def _segment(field: str, name: str) -> str:
    """``name`` as one segment of a path; InvalidInputError if it is no text."""
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise InvalidInputError(field, WHOLE_TEXT, name) from None


def _to_json(body: Mapping[str, Any]) -> bytes:
    """The body of a request; InvalidInputError names the field that JSON cannot express."""
    if (content := _encoded(body)) is not None:
        return content
    fields: dict[str, Any] = {}
    for name, value in body.items():
        if isinstance(value, Mapping):
            fields |= {f"{name}.{key}": each for key, each in value.items()}
        fields[name] = value
    field, got = next(((name, each) for name, each in fields.items() if _encoded(each) is None), ("body", ""))
    allowed = {float: "a finite number", str: WHOLE_TEXT}.get(type(got), _SENDABLE)
    raise InvalidInputError(field, allowed, got)


def _encoded(value: object) -> bytes | None:
    """A value as JSON; None if it has none."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        return None


def _read(kind: type[_Model], text: str | bytes, answer: httpx2.Response) -> _Model:
    """What a gateway answered; DekagError if it was something else."""
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        raise _foreign(answer) from None


def _foreign(answer: httpx2.Response) -> DekagError:
    return DekagError(f"{answer.url} is no gateway")


def _retry_after_s(answer: httpx2.Response) -> int | None:
    said = answer.headers.get("Retry-After", "")
    return int(said) if said.isdecimal() else None


def _check(answer: httpx2.Response) -> httpx2.Response:
    """Returns ``answer`` if it is a success; otherwise raises the DekagError of its problem."""
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
            error.args = (problem.detail,)  # the gateway's message, which names every field
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
