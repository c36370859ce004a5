"""The committed stubs are what the contracts generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
