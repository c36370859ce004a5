"""The committed stubs are what the contracts generate."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from dekag.api.schemas import LinkReport
from services.channel.servicer import ChannelServicer
from services.cloud.servicer import CloudServicer
from services.edge.servicer import EdgeServicer
from services.proto import cloud_pb2, downlink_pb2, user_pb2
from services.user.servicer import UserServicer


def test_stubs_have_not_drifted() -> None:
    pytest.importorskip("grpc_tools")
    script = Path(__file__).parents[2] / "scripts" / "generate_proto.py"
    found = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("grpc_tools")
    path = Path(__file__).parents[2] / "scripts" / "generate_proto.py"
    spec = importlib.util.spec_from_file_location("generate_proto", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_new_field_of_the_report_gets_the_next_number(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = script.REPORT.read_text()
    last = max(field.number for field in user_pb2.LinkReport.DESCRIPTOR.fields)

    class Report(LinkReport):
        papr_db: float | None = Field(description="Peak to average power, dB; null if unknown.")

    monkeypatch.setattr(script, "LinkReport", Report)
    added = f"  // Peak to average power, dB; unset if unknown.\n  optional double papr_db = {last + 1};\n}}"
    after = script.with_report(before)
    assert after.endswith(added + "\n")
    assert after.replace(added, "}") == before
    assert script.with_report(after) == after


def test_a_field_of_the_report_whose_type_is_not_plain_is_left_to_its_author(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Report(LinkReport):
        spectrum: list[float] = Field(description="Power of each subcarrier.")

    monkeypatch.setattr(script, "LinkReport", Report)
    with pytest.raises(SystemExit, match=r"declare LinkReport\.spectrum by hand"):
        script.with_report(script.REPORT.read_text())


@pytest.mark.parametrize(
    ("servicer", "contract"),
    [
        (CloudServicer, cloud_pb2.DESCRIPTOR.services_by_name["Cloud"]),
        (EdgeServicer, downlink_pb2.DESCRIPTOR.services_by_name["Downlink"]),
        (ChannelServicer, downlink_pb2.DESCRIPTOR.services_by_name["Downlink"]),
        (UserServicer, user_pb2.DESCRIPTOR.services_by_name["User"]),
    ],
)
def test_servicers_implement_every_rpc(servicer: Any, contract: Any) -> None:
    assert contract.methods
    assert {method.name for method in contract.methods} <= set(vars(servicer))
