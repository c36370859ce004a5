"""`dekag doctor`: what each check sees, and what is made of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dekag.training.tiny_models import FOREIGN, save_dummy_models
from services.cli import doctor
from services.cli.doctor import CheckResult, examine, run_doctor
from services.cli.main import app
from services.launcher.stack import SERVICES


def test_the_doctor_says_what_reports_how_to_fix_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    def fine() -> CheckResult:
        return CheckResult("fine", True, "1.0")

    def gone() -> CheckResult:
        return CheckResult("gone", False, "not [here]", "make it")

    def luxury() -> CheckResult:
        return CheckResult("luxury", False, "not installed", "pip install -e '.[luxury]'", needed=False)

    def broken_one() -> CheckResult:
        raise ModuleNotFoundError("No module named 'grpc'")

    assert run_doctor(checks=(fine, luxury)) == 0
    assert "luxury:            pip install -e '.[luxury]'" in capsys.readouterr().out
    assert run_doctor(checks=(fine, gone)) == 1
    shown = capsys.readouterr().out
    assert "not [here]" in shown
    assert "gone:              make it" in shown
    assert run_doctor(checks=(broken_one, gone, luxury), as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [each["name"] for each in found["checks"]] == ["broken-one", "gone", "luxury"]
    assert "grpc" in found["checks"][0]["detail"]
    assert found["checks"][0]["fix"] == "make install"


def test_the_doctor_looks_at_everything() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == (0 if found["ok"] else 1)
    checks = {each["name"]: each for each in found["checks"]}
    assert len(checks) == len(doctor.CHECKS)
    for name in ("python", "packages", "torch", "models", "data-folder", "plug-ins"):
        assert checks[name]["ok"], checks[name]
    assert all(each["ok"] or each["fix"] for each in checks.values())


def test_the_doctor_sees_a_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setitem(SERVICES, "edge", (port, {}))
        (found,) = examine((doctor.ports,))
    assert not found.ok
    assert f"{port} (edge)" in found.detail
    assert found.fix == "dekag up --free-ports"


@pytest.mark.asyncio(loop_scope="session")
async def test_the_doctor_knows_a_system_that_runs(gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVICES, "gateway", (int(gateway_url.rpartition(":")[2]), {}))
    # services in this process take one another for dead while a test holds up the event loop
    async with asyncio.timeout(60):
        while not (found := await asyncio.to_thread(doctor.ports)).ok:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert found == CheckResult("ports", True, "a system is running and ready")


def test_the_doctor_sees_models_that_are_gone_or_damaged(
    tmp_path: Path, dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEKAG_PROFILE", str(dummy_profile))
    assert doctor.models().ok
    monkeypatch.setenv("DEKAG_PROFILE", str(tmp_path))
    assert not doctor.models().ok
    (tmp_path / "profile.json").write_text((dummy_profile / "profile.json").read_text())
    found = doctor.models()
    for part in ("cloud", "edge", "codec"):
        assert f"{part}: no weights of {part} on this machine" in found.detail
    assert found.fix == f"dekag profile check {tmp_path}"
    other = save_dummy_models(tmp_path / "other", like=FOREIGN)
    for role in ("cloud", "edge", "pixels"):
        shutil.copytree(dummy_profile / role, tmp_path / role)
    shutil.copytree(other / "codec", tmp_path / "codec")
    assert "codec: made for latents of 16 channels; the edge's have 4" in doctor.models().detail

    monkeypatch.setenv("DEKAG_PROFILE", "stickers")
    named = CliRunner().invoke(app, ["doctor", "--profile", str(tmp_path), "--json"])
    checks = {each["name"]: each for each in json.loads(named.stdout)["checks"]}
    assert checks["models"]["detail"].startswith(f"profile {tmp_path}: codec: made for latents of 16")

    shipped = Path("models/stickers/cala")
    copy = tmp_path / "cala"
    copy.mkdir()
    for path in shipped.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert doctor._fits_its_hash(copy)
    with (copy / "adapter_model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert not doctor._fits_its_hash(copy)


def test_the_doctor_sees_a_plug_in_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, plugging: None, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEKAG_PLUGINS", "no/such/file.py:Name")
    found = doctor.plug_ins()
    assert not found.ok
    assert "there is no such file" in found.detail
    # and is not kept from looking at the rest by it
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["checks"]) == len(doctor.CHECKS)


def test_the_doctor_sees_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.settings().ok
    monkeypatch.setenv("DEKAG_DEVICE", "cuda:99")
    found = doctor.settings()
    assert not found.ok
    assert found.detail == "DEKAG_DEVICE must be a device of this machine (cpu); got 'cuda:99'"


def test_doctor_sees_a_data_folder_that_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEKAG_DATA_DIR", str(tmp_path / "not/there/yet"))
    assert doctor.data_folder().ok
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEKAG_DATA_DIR", str(tmp_path / "file"))
    assert not doctor.data_folder().ok
