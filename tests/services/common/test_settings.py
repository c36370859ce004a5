"""Settings: what is empty says nothing, what is wrong is refused by its name, what is unknown is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from dekag import client, plugins
from dekag.errors import InvalidInputError
from services.channel.settings import ChannelSettings
from services.cli import main as cli
from services.cloud.settings import CloudSettings, DistillerSettings
from services.common import tracing
from services.common.certificates import TLS_DIR, certificates_in
from services.common.environment import OTHERS, known, unknown_variables
from services.common.errors import SettingError
from services.common.security import (
    CA,
    CERTIFICATE,
    KEY,
    channel_credentials,
    redis_options,
)
from services.common.settings import CommonSettings
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import PASSWORD, make_credentials
from services.launcher.stack import SETTINGS
from services.user.settings import UserSettings

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = ("docker-compose.yml", "deploy/compose.monitoring.yml", "deploy/compose.secure.yml")
ALL_SETTINGS = [pytest.param(kind, id=name) for name, kind in SETTINGS.items()]


class _ComposeLoader(yaml.SafeLoader):
    """Reads a value with Compose's tag `!override` as it is."""


_ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def variable(name: str) -> str:
    return f"DEKAG_{name.upper()}"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DEKAG_", "OTEL_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("kind", ALL_SETTINGS)
@pytest.mark.parametrize("nothing", ["", " ", "\t", "\n \r\n", "\N{NO-BREAK SPACE}"])
def test_empty_variable_counts_as_unset(
    kind: type[CommonSettings], nothing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = kind.read()
    for name in kind.model_fields:
        monkeypatch.setenv(variable(name), nothing)
    assert kind.read() == kind() == usual
    assert kind.read(dict(os.environ)) == usual
    assert unknown_variables() == []


def _numbers(kind: type[CommonSettings]) -> dict[str, FieldInfo]:
    return {name: field for name, field in kind.model_fields.items() if field.annotation in (int, float)}


@pytest.mark.parametrize("kind", ALL_SETTINGS)
@pytest.mark.parametrize("wrong", ["-1", "1e400", "nan", "inf", str(10**30), "many", "1,5", "0x10"])
def test_every_number_has_bounds_and_is_named_in_one_line(kind: type[CommonSettings], wrong: str) -> None:
    numbers = _numbers(kind)
    assert len(numbers) > 8
    for name in numbers:
        with pytest.raises(SettingError) as caught:
            kind.read({variable(name): wrong})
        said = str(caught.value)
        assert said.startswith(f"{variable(name)}: ")
        assert "\n" not in said
        assert repr(wrong)[:-1] in said


def test_every_wrong_variable_is_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        UserSettings.read(
            {"DEKAG_PORT": "65536", "DEKAG_DOWNLINK_ADDRESS": "edge", "DEKAG_LOG_LEVEL": "loud"}
        )
    for name in ("DEKAG_PORT", "DEKAG_DOWNLINK_ADDRESS", "DEKAG_LOG_LEVEL"):
        assert f"{name}: " in str(caught.value)


ADDRESSES = [
    (kind, name) for kind in SETTINGS.values() for name in kind.model_fields if name.endswith("_address")
]
NO_ADDRESSES = [
    "edge",
    "edge:",
    ":50051",
    "grpc://edge:50051",
    "http://edge:50051",
    "dns:///edge:50051",
    "edge:50051/",
    "edge:0",
    "edge:65536",
    "edge:port",
    "edge:-1",
    "edge:50051 ",
    "the edge:50051",
    "::1:50051",
    "fe80::1",
    "[::1]",
    "[::1:50051",
    "10.0.0.256:50051",
    "-edge:50051",
    "edge..local:50051",
    f"{'e' * 64}:50051",
    "edge:50051,edge:50052",
    "10.0.0.1:50051,edge:50052",
    "10.0.0.1:50051,[::1]:50051",
    ",",
    "käse.local:50051",
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_invalid_address_is_refused_at_start(address: str) -> None:
    assert len(ADDRESSES) >= 5
    for kind, name in ADDRESSES:
        with pytest.raises(SettingError, match=f"^{variable(name)}: must be ") as caught:
            kind.read({variable(name): address})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "edge:1",
        "[::1]:50051",
        "a_b.c-d.:65535",
        "10.0.0.1:80",
        "xn--kse-qla.de:1",
        "10.0.0.1:1,10.0.0.2:1",
        "[::1]:1,[::2]:1",
    ],
)
def test_an_address_is_taken_as_it_is(address: str) -> None:
    for kind, name in ADDRESSES:
        assert getattr(kind.read({variable(name): address}), name) == address


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("host", "http://0.0.0.0"),
        ("host", "127.0.0.1:8080"),
        ("host", "my host"),
        ("metrics_host", "1.2.3"),
        ("published_on", "https://example.org"),
        ("published_on", "example.org:8080"),
        ("redis_url", "127.0.0.1:6379"),
        ("redis_url", "localhost"),
        ("redis_url", "http://localhost:6379"),
        ("redis_url", "redis://localhost:65536"),
        ("redis_url", "redis://localhost:0"),
        ("redis_url", "redis://localhost/cache"),
        ("redis_url", "redis://localhost/0?unheard=of"),
        ("redis_url", "redis://local host"),
        ("redis_url", "redis://:1"),
        ("redis_url", f"unix:///{'long/' * 30}socket"),
        ("spans_to", "localhost:4318"),
        ("spans_to", "grpc://localhost:4317"),
        ("spans_to", "http://"),
        ("spans_to", "http://localhost:99999/v1/traces"),
    ],
)
@pytest.mark.parametrize("kind", ALL_SETTINGS)
def test_what_is_no_host_or_url_is_refused(kind: type[CommonSettings], name: str, wrong: str) -> None:
    with pytest.raises(SettingError, match=f"^{variable(name)}: "):
        kind.read({variable(name): wrong})


def test_hosts_with_brackets_and_redis_as_it_is_written() -> None:
    assert CommonSettings.read({"DEKAG_HOST": "[::1]"}).host == "::1"
    for url in ("rediss://u@[::1]:1/15", "redis://localhost", "unix:///run/redis.sock?db=2", "redis://h/0/"):
        assert CommonSettings.read({"DEKAG_REDIS_URL": url}).redis_url == url
    assert CommonSettings.read({"DEKAG_REDIS_URL": " None "}).redis_url == ""


def test_names_that_the_gateway_answers_to_are_checked() -> None:
    assert GatewaySettings.read({"DEKAG_ALLOWED_HOSTS": "a.example, b"}).allowed_hosts == "a.example, b"
    for wrong in ("https://a.example", "a.example:8080", "a.example, b c"):
        with pytest.raises(SettingError, match="DEKAG_ALLOWED_HOSTS"):
            GatewaySettings.read({"DEKAG_ALLOWED_HOSTS": wrong})


def test_misspelled_variable_is_reported_with_the_nearest_name() -> None:
    told = unknown_variables(
        {"DEKAG_THREDS": "2", "DEKAG_REDIS": "x", "DEKAG_PORT": "1", "HOME": "/", "DEKAG_": "1"}
    )
    assert len(told) == 3
    assert any("DEKAG_THREDS" in each and "did you mean DEKAG_THREADS?" in each for each in told)
    assert unknown_variables({"DEKAG_XYZZYXYZZY": "1"})[0].endswith("see docs/settings.md for all settings")
    assert unknown_variables({"DEKAG_THREDS": "  "}) == [], "it holds nothing"


def test_every_variable_that_anything_here_names_is_known() -> None:
    """In code, compose files and docs, so that nobody is warned of what the docs told them to set."""
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "dekag",
            "services",
            "deploy",
            "docs",
            "docker-compose.yml",
            "README.md",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    named = set()
    for path in listed:
        if path.endswith((".py", ".yml", ".md", "Dockerfile")) and (ROOT / path).is_file():
            named |= set(re.findall(r"\bDEKAG_[A-Z_]*[A-Z]\b", (ROOT / path).read_text()))
    assert named - known() == set()
    assert set(OTHERS) <= named


def test_the_command_line_and_a_service_tell_of_unknown_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEKAG_PROFIL", "stickers")
    done = CliRunner().invoke(cli.app, ["key", "alice"])
    assert done.exit_code == 0
    assert "DEKAG_PROFIL is not a setting and has no effect; did you mean DEKAG_PROFILE?" in done.stderr
    assert "DEKAG_PROFIL" not in done.stdout
    ended = subprocess.run(
        [sys.executable, "-m", "services.gateway"],
        env=os.environ | {"DEKAG_USER_ADDRESS": "http://user:1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 1
    assert "did you mean DEKAG_PROFILE?" in ended.stderr
    assert "DEKAG_USER_ADDRESS: must be host:port without a scheme" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "url", ["ftp://a", "http://", "http://a b", "http://a:99999", "http://a:0", "http://a\\b", "a%20b", ""]
)
@pytest.mark.parametrize("command", [["image", "a boat"], ["distill", "neon"]])
def test_a_url_that_is_no_gateways_is_refused(command: list[str], url: str) -> None:
    done = CliRunner().invoke(cli.app, [*command, "--url", url])
    assert done.exit_code == 2, done.output
    assert "url must be the URL of a gateway" in done.stderr
    with pytest.raises(InvalidInputError, match="url must be the URL of a gateway"):
        client.Client(url)


def test_empty_client_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in ("", "  "):
        for name in ("DEKAG_API_KEY", "DEKAG_CA_FILE", "DEKAG_PLUGINS", "DEKAG_HOSTNAMES"):
            monkeypatch.setenv(name, nothing)
        client.Client().close()
        assert client.authorization() == {}
        plugins.load_from_environment()


def test_variables_of_opentelemetry_that_hold_nothing_or_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:1/v1/traces"
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "")
        monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", " ")
        tracing.configure("test", url)
        tracing.close()
        monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "many")
        with pytest.raises(SettingError, match="OTEL_SPAN_EVENT_COUNT_LIMIT"):
            tracing.configure("test", url)
    finally:
        tracing.close()


@pytest.mark.parametrize("file", COMPOSE)
def test_compose_files_take_an_empty_variable_for_none(file: str) -> None:
    for given in re.findall(r"\$\{[^}]*\}", (ROOT / file).read_text()):
        if given.startswith("${DEKAG_START_TOPICS"):
            continue  # empty is no topic, as another profile needs it
        assert re.fullmatch(r"\$\{\w+:[-?].*\}", given), f"{given}: - without : takes what is empty"


@pytest.mark.parametrize("file", [*COMPOSE, "tests/faults/compose.faults.yml"])
def test_logs_of_containers_are_bounded(file: str) -> None:
    services: dict[str, Any] = yaml.load((ROOT / file).read_text(), _ComposeLoader)["services"]  # noqa: S506
    whole = {name: each for name, each in services.items() if "image" in each}
    assert whole
    for name, each in whole.items():
        assert each["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
    assert not [name for name, each in services.items() if name not in whole and "logging" in each]


@pytest.mark.parametrize(
    "written", [b"s3cret", b"s3cret\n", b"s3cret\r\n", b"\xef\xbb\xbfs3cret\n", b"s3cret\n\n"]
)
def test_secret_files_of_any_editor_are_read(tmp_path: Path, written: bytes) -> None:
    (file := tmp_path / "redis.password").write_bytes(written)
    assert redis_options(CommonSettings(redis_password_file=file))["password"] == "s3cret"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "is empty"),
        (b"\r\n", "is empty"),
        (b"p\xe9s", "UTF-8"),
        (b"one\ntwo\n", "one line"),
        (None, "is a folder"),
    ],
)
def test_a_secret_that_cannot_be_read_is_told_by_its_variable(
    tmp_path: Path, written: bytes | None, said: str
) -> None:
    file = tmp_path / "redis.password"
    if written is None:
        file.mkdir()
    else:
        file.write_bytes(written)
    with pytest.raises(SettingError, match=f"^DEKAG_REDIS_PASSWORD_FILE: .*{said}"):
        redis_options(CommonSettings(redis_password_file=file))


def test_a_password_in_the_url_and_in_a_file_is_refused(tmp_path: Path) -> None:
    given = {"DEKAG_REDIS_URL": "redis://:s3cret@h", "DEKAG_REDIS_PASSWORD_FILE": str(tmp_path / "x")}
    for kind in SETTINGS.values():
        with pytest.raises(SettingError, match="DEKAG_REDIS_URL holds a password and") as caught:
            kind.read(given)
        assert "s3cret" not in str(caught.value)


def test_a_password_that_an_editor_ended_with_a_line_still_lets_in(tmp_path: Path) -> None:
    make_credentials(tmp_path)
    before = (tmp_path / "redis" / "users.acl").read_text()
    for file in tmp_path.rglob(PASSWORD):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\r\n")
    make_credentials(tmp_path)
    assert (tmp_path / "redis" / "users.acl").read_text() == before


@pytest.mark.parametrize("broken", [CA, CERTIFICATE, KEY])
@pytest.mark.parametrize("how", ["gone", "nonsense", "folder"])
def test_invalid_tls_folder_names_the_variable(
    credentials_dir: Path, tmp_path: Path, broken: str, how: str
) -> None:
    for name in (CA, CERTIFICATE, KEY):
        if name != broken:
            (tmp_path / name).write_bytes((credentials_dir / "edge" / name).read_bytes())
    if how == "nonsense":
        (tmp_path / broken).write_text("-----BEGIN NONSENSE-----\n")
    elif how == "folder":
        (tmp_path / broken).mkdir()
    settings = CommonSettings(tls_dir=tmp_path, redis_url="rediss://h")
    for use in (
        lambda: certificates_in(tmp_path, TLS_DIR),
        lambda: channel_credentials(tmp_path),
        lambda: redis_options(settings),
    ):
        with pytest.raises(SettingError, match=f"^DEKAG_TLS_DIR: .*{broken}"):
            use()
    if broken != CA:
        with pytest.raises(SettingError, match=f"^DEKAG_HTTPS_DIR: .*{broken}"):
            make_server(create_app(GatewaySettings(redis_url="none", https_dir=tmp_path)))


def test_a_key_of_another_certificate_is_refused(credentials_dir: Path, tmp_path: Path) -> None:
    for name, service in ((CA, "edge"), (CERTIFICATE, "edge"), (KEY, "cloud")):
        (tmp_path / name).write_bytes((credentials_dir / service / name).read_bytes())
    with pytest.raises(SettingError, match=r"^DEKAG_TLS_DIR: .*must be a certificate and its key"):
        certificates_in(tmp_path, TLS_DIR)


def test_folders_of_settings_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = '/a b/Müller/100%/$HOME/#1/"q"/it\'s/line\nbreak/back\\slash/\N{GRINNING FACE}/\udcff'
    monkeypatch.setenv("DEKAG_DATA_DIR", odd)
    assert os.fspath(CloudSettings.read().data_dir) == odd
    assert os.fspath(DistillerSettings.read({"DEKAG_DATA_DIR": odd}).data_dir) == odd


def test_invalid_trace_folder_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(SettingError, match=r"^DEKAG_TRACES: .*directory"):
            ChannelSettings.read({"DEKAG_TRACES": str(wrong)})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "banana"}, "DEKAG_DEVICE must be auto, cpu, cuda, cuda:N or mps; got 'banana'"),
        ({"text_device": "cuda:99"}, "DEKAG_TEXT_DEVICE must be a device of this machine"),
        ({"offload": True}, "DEKAG_OFFLOAD must be used with a CUDA device; got 'cpu'"),
    ],
)
def test_a_device_that_is_not_there_is_named_by_its_variable(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        UserSettings(**given).placement()
    assert said in str(caught.value)


def test_the_format_of_the_autoencoder_is_a_setting_of_the_machine() -> None:
    assert UserSettings.read({"DEKAG_VAE_DTYPE": "bfloat16"}).placement().vae_dtype == "bfloat16"
    assert UserSettings.read({"DEKAG_VAE_DTYPE": " "}).placement().vae_dtype == ""
    with pytest.raises(SettingError, match=r"DEKAG_VAE_DTYPE: Input should be .*'bfloat16'"):
        UserSettings.read({"DEKAG_VAE_DTYPE": "float16"})
