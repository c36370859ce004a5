"""REST to gRPC and back; the only place that knows both shapes."""

from __future__ import annotations

import base64
import math
from typing import get_args

import numpy as np

from dekag.api.schemas import (
    Consistency,
    Constellation,
    Details,
    HopTraffic,
    ImageData,
    ImagesRequest,
    Job,
    JobStatus,
    KnowledgeManifest,
    KnowledgeRequest,
    KnowledgeUse,
    LinkReport,
    ModulationAndCoding,
    PromptRead,
    RunningConsistency,
    StageTime,
    Transmission,
    parse_size,
)
from dekag.errors import InvalidInputError
from services.common.converters import (
    DELIVERIES,
    FORMATS,
    LONG_PROMPTS,
    MODULATIONS,
    link_from_proto,
    link_to_proto,
)
from services.common.knowledge import Manifest
from services.common.transmission import TransmissionManifest
from services.proto import cloud_pb2, downlink_pb2, user_pb2

_DELIVERY_NAMES = {value: name for name, value in DELIVERIES.items()}
_MODULATION_NAMES = {value: name for name, value in MODULATIONS.items()}
_FORMAT_NAMES = {value: name for name, value in FORMATS.items()}
_STATUS_NAMES = {
    cloud_pb2.JobStatus.Value(f"JOB_STATUS_{name.upper()}"): name for name in get_args(JobStatus)
}


def to_proto(request: ImagesRequest, seed: int) -> downlink_pb2.ProvideRequest:
    """The request for one of the images, the one with this seed."""
    width, height = parse_size(request.size)
    return downlink_pb2.ProvideRequest(
        prompt=request.prompt,
        seed=seed,
        width=width,
        height=height,
        delivery=DELIVERIES[request.delivery],
        cbr=0.0 if request.link.cbr == "auto" else request.link.cbr,
        link=link_to_proto(request.link),
        measure=True,
        details=request.details,
        knowledge=request.knowledge,
        modulation=MODULATIONS[request.link.modulation],
        target_psnr_db=request.link.target_psnr_db,
        image_format=FORMATS[request.image_format],
        on_long_prompt=LONG_PROMPTS[request.on_long_prompt],
    )


def to_distill(request: KnowledgeRequest) -> cloud_pb2.DistillRequest:
    """The request for a job."""
    return cloud_pb2.DistillRequest(**request.model_dump(exclude_none=True))


def to_job(job: cloud_pb2.Job) -> Job:
    """The job as REST returns it."""
    return Job(
        id=job.id,
        topic=job.topic,
        status=_STATUS_NAMES[job.status],
        stage=job.stage or None,
        done=job.done,
        total=job.total,
        loss=job.loss if job.HasField("loss") else None,
        error=job.error or None,
        created=job.created,
        started=job.started if job.HasField("started") else None,
        finished=job.finished if job.HasField("finished") else None,
        version=job.version if job.HasField("version") else None,
        kept_aside=job.kept_aside or None,
        scores=dict(job.scores),
    )


def to_manifest(
    manifest: cloud_pb2.KnowledgeManifest, consistency: RunningConsistency | None = None
) -> KnowledgeManifest:
    """The manifest as REST returns it."""
    return KnowledgeManifest(**Manifest.from_proto(manifest).model_dump(), consistency=consistency)


def to_image_consistency(found: cloud_pb2.Consistency) -> Consistency:
    """The consistency of one image as REST returns it."""
    return Consistency(
        clip=found.clip,
        dino=found.dino,
        mean=found.consistency,
        prompt_read=_prompt_read(found.prompt_read),
    )


def to_consistency(running: cloud_pb2.RunningConsistency) -> RunningConsistency:
    """The running consistency as REST returns it."""
    return RunningConsistency(
        samples=running.samples, fresh=running.fresh, recent=running.recent, drifting=running.drifting
    )


def to_transmission(answer: downlink_pb2.TransmissionKnowledge) -> Transmission:
    """The current transmission knowledge as REST returns it."""
    manifest = TransmissionManifest.from_proto(answer.manifest)
    return Transmission(**manifest.model_dump(), versions=list(answer.versions))


def to_image(received: user_pb2.ReceivedImage, request_id: str) -> ImageData:
    """The image and its report as REST returns them."""
    report = to_report(received.report, request_id)
    png = base64.b64encode(received.png).decode() if report.decoded else None
    return ImageData(
        b64_json=png,
        seed=report.seed,
        link_report=report,
        details=_to_details(received.details) if received.HasField("details") else None,
    )


def _prompt_read(read: downlink_pb2.PromptRead) -> PromptRead:
    return PromptRead(tokens=read.tokens, tokens_read=read.tokens_read, tokens_at_once=read.tokens_at_once)


def _to_details(details: user_pb2.Details) -> Details:
    return Details(
        reference_b64_json=base64.b64encode(details.reference).decode(),
        constellation=Constellation(
            sent=_points(details.sent),
            received=_points(details.received),
            equalized=_points(details.equalized),
        ),
    )


def _points(iq: bytes) -> list[tuple[float, float]]:
    """(K,) complex64 on the wire as pairs."""
    return [(re, im) for re, im in np.frombuffer(iq, "<f4").reshape(-1, 2).tolist()]


def to_report(report: user_pb2.LinkReport, request_id: str) -> LinkReport:
    """The link report as REST returns it."""
    coding = report.coding
    try:
        link = link_from_proto(report.link)
    except InvalidInputError as error:  # of the user service, not of the request
        raise ValueError(f"link report: {error}") from error
    return LinkReport(
        request_id=request_id,
        seed=report.seed,
        delivery=_DELIVERY_NAMES[report.delivery],
        decoded=report.decoded,
        channel_uses=report.channel_uses,
        cbr=report.cbr,
        **link.model_dump(),
        pilot_uses=report.pilot_uses,
        no=report.no,
        gains=_points(report.gains),
        instantaneous_snr_db=(
            report.instantaneous_snr_db if report.HasField("instantaneous_snr_db") else None
        ),
        prompt_read={side: _prompt_read(read) for side, read in report.prompt_read.items()},
        psnr_db=report.psnr_db if report.HasField("psnr_db") else None,
        scores={name: value if math.isfinite(value) else None for name, value in report.scores.items()},
        stages=[StageTime(stage=each.stage, seconds=each.seconds) for each in report.stages],
        hops=[HopTraffic(hop=each.hop, sent_bytes=each.sent_bytes) for each in report.hops],
        model_hashes=dict(report.model_hashes),
        cached=report.cached,
        knowledge=[
            KnowledgeUse(topic=each.topic, version=each.version, content_hash=each.content_hash)
            for each in report.knowledge
        ],
        modulation=_MODULATION_NAMES.get(report.modulation),
        target_psnr_db=report.target_psnr_db if report.HasField("target_psnr_db") else None,
        expected_psnr_db=report.expected_psnr_db if report.HasField("expected_psnr_db") else None,
        coding=ModulationAndCoding(
            bits_per_symbol=coding.bits_per_symbol,
            codeword_bits=coding.codeword_bits,
            information_bits=coding.information_bits,
            payload_bytes=coding.payload_bytes,
        )
        if report.HasField("coding")
        else None,
        image_format=_FORMAT_NAMES[report.image_format] if report.image_format else None,
    )
