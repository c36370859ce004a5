"""`dekag results book`: fills README and docs/ from the committed results and from the code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel

from dekag.evaluation.pages import DOCS, Report
from dekag.evaluation.registry import RESULTS
from dekag.evaluation.reports import (
    baseline_models,
    cala,
    city,
    claims,
    digital,
    end_to_end,
    makd,
    metrics,
    model_cards,
    photos,
    restoration,
    robustness,
    training,
)
from services.bench import real_models_report
from services.bench import report as serving
from services.cli import reference
from services.common.callers import MAY_CALL

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

REPORTS: tuple[Report, ...] = (
    baseline_models.REPORT,
    makd.REPORT,
    cala.REPORT,
    restoration.REPORT,
    digital.REPORT,
    photos.REPORT,
    metrics.REPORT,
    end_to_end.REPORT,
    city.REPORT,
    city.REFERENCE,
    serving.LOAD,
    serving.PERFORMANCE,
    robustness.REPORT,
    training.REPORT,
    real_models_report.REPORT,
    claims.CLAIMS,
)


def has_pages(root: Path = Path()) -> bool:
    """Whether a folder is a clone, with pages to fill."""
    return (root / "README.md").is_file() and (root / DOCS / claims.CLAIMS.page).is_file()


def write_pages(root: Path = Path(), results: Path = RESULTS) -> None:
    """Fill every page in docs/, the README and the model cards; missing pages are skipped."""
    for report in REPORTS:
        report.write(root / DOCS, results)
    claims.README.write(root, results)
    model_cards.write_cards(root / "models", results)


def write_reference(app: typer.Typer) -> None:
    """Write the reference pages from the code."""
    reference.write_settings_page(settings_of_services())
    reference.write_cli_page(app)
    reference.write_rest_page(openapi())
    reference.write_grpc_page(grpc_services())
    reference.write_security_page(MAY_CALL)


def openapi() -> dict[str, Any]:
    """The gateway's OpenAPI document, which docs/rest.md shows."""
    from services.gateway.app import create_app

    return create_app().openapi()


def grpc_services() -> list[tuple[ServiceDescriptor, type]]:
    """The gRPC services that docs/grpc.md shows, in the order of the chain, each with its generated class."""
    from services.proto import (
        cloud_pb2,
        cloud_pb2_grpc,
        downlink_pb2,
        downlink_pb2_grpc,
        user_pb2,
        user_pb2_grpc,
    )

    return [
        (user_pb2.DESCRIPTOR.services_by_name["User"], user_pb2_grpc.UserServicer),
        (downlink_pb2.DESCRIPTOR.services_by_name["Downlink"], downlink_pb2_grpc.DownlinkServicer),
        (cloud_pb2.DESCRIPTOR.services_by_name["Cloud"], cloud_pb2_grpc.CloudServicer),
    ]


def settings_of_services() -> dict[str, type[BaseModel]]:
    """The settings that docs/settings.md shows, by the name of the service."""
    from services.channel.settings import ChannelSettings
    from services.cloud.settings import CloudSettings, DistillerSettings
    from services.edge.settings import EdgeSettings
    from services.gateway.settings import GatewaySettings
    from services.user.settings import UserSettings

    return {
        "gateway": GatewaySettings,
        "user": UserSettings,
        "channel": ChannelSettings,
        "edge": EdgeSettings,
        "cloud": CloudSettings,
        "distiller": DistillerSettings,
    }
