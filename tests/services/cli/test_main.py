"""The command line: in this process where it needs no system, else as its own in front of the real chain."""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from dekag.api import image_file
from dekag.client import Client, UnauthorizedError, gateway_url
from dekag.errors import DekagError, NotFoundError, UnavailableError
from services.cli.distill import read_prompts
from services.cli.extras import Command
from services.cli.image import default_name
from services.cli.main import app
from tests.services.command_line import dekag, environment

COLOURFUL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "FORCE_COLOR": "1"}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.asyncio(loop_scope="session")
async def test_an_image_is_written_and_its_report_shown(gateway_url: str, tmp_path: Path) -> None:
    done = await dekag("image", "A red boat!", "--seed", "7", "--url", gateway_url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.asarray(Image.open(tmp_path / "a-red-boat-7.png")).shape == (128, 128, 3)
    for shown in ("PSNR", "channel uses", "bytes edge-channel", "time edge.generate", "a-red-boat-7.png"):
        assert shown in done.stdout
    assert done.stderr == ""

    again = await dekag("image", "A red boat!", "--seed", "7", "--url", gateway_url, folder=tmp_path)
    assert again.returncode == 2
    assert "exists already; --force overwrites it" in again.stderr
    assert again.stdout == ""
    forced = await dekag(
        "image", "A red boat!", "--seed", "7", "--url", gateway_url, "--force", folder=tmp_path
    )
    assert forced.returncode == 0, forced.stderr


@pytest.mark.asyncio(loop_scope="session")
async def test_every_option_arrives_and_json_is_all_there_is(gateway_url: str, tmp_path: Path) -> None:
    options = ["--seed", "3", "--size", "64x96", "--snr-db", "-2.5", "--cbr", "1/192", "--fading", "awgn"]
    options += ["--delivery", "semantic-unaligned", "--output", "new/boat.png", "--json"]
    done = await dekag(
        "image", "a boat", "--url", f"{gateway_url}/", *options, folder=tmp_path, env=COLOURFUL
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["seed"], report["delivery"], report["fading"]) == (3, "semantic-unaligned", "awgn")
    assert (report["snr_db"], report["cbr"]) == (-2.5, pytest.approx(1 / 192))
    assert Image.open(tmp_path / "new/boat.png").size == (64, 96)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
async def test_an_image_is_made_again_from_its_file(gateway_url: str, tmp_path: Path, suffix: str) -> None:
    options = ["--size", "64x64", "--snr-db", "3", "--fading", "rician", "--steps", "3", "--url", gateway_url]
    first = await dekag("image", "a boat", *options, "--output", f"boat.{suffix}", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert Image.open(tmp_path / f"boat.{suffix}").format == {"jpg": "JPEG"}.get(suffix, suffix.upper())
    again = await dekag("image", "--from", f"boat.{suffix}", "--url", gateway_url, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / f"boat-again.{suffix}").read_bytes() == (tmp_path / f"boat.{suffix}").read_bytes()


@pytest.mark.asyncio(loop_scope="session")
async def test_the_name_of_a_file_says_its_format(gateway_url: str, tmp_path: Path) -> None:
    again = ["image", "--from", "boat.jpg", "--url", gateway_url]
    first = ["image", "a boat", "--size", "64x64", "--url", gateway_url]
    assert (await dekag(*first, "--output", "boat.png", folder=tmp_path)).returncode == 0
    (tmp_path / "boat.png").rename(tmp_path / "boat.jpg")
    done = await dekag(*again, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(names(tmp_path)) == ["boat-again.png", "boat.jpg"]
    for command, output, allowed in (
        (again, "new.jpg", ".png: the image is made again as a PNG"),
        (again, "new.gif", ".png: the image is made again as a PNG"),
        (first, "new.gif", ".png or .jpg or .jpeg or .webp"),
    ):
        done = await dekag(*command, "--output", output, folder=tmp_path)
        assert done.returncode == 2
        assert f"--output must be a file ending in {allowed}" in done.stderr
    assert sorted(names(tmp_path)) == ["boat-again.png", "boat.jpg"]
    done = await dekag(*first, "--output", "boat.tmp", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "boat.tmp").format == "PNG"


@pytest.mark.asyncio(loop_scope="session")
async def test_an_image_of_other_models_or_pixels_is_not_made_again(gateway_url: str, tmp_path: Path) -> None:
    made = tmp_path / "boat.png"
    first = ["image", "a boat", "--size", "64x64", "--output", "boat.png", "--url", gateway_url]
    assert (await dekag(*first, folder=tmp_path)).returncode == 0
    origin = image_file.read_provenance(made)
    file = io.BytesIO()
    Image.open(made).save(file, "PNG")  # without metadata
    other = origin.model_copy(update={"model_hashes": {**origin.model_hashes, "edge": "e" * 64}})
    (tmp_path / "other.png").write_bytes(image_file.with_metadata(file.getvalue(), other))
    (tmp_path / "bare.png").write_bytes(file.getvalue())
    edited = Image.open(made).copy()
    edited.putpixel((3, 4), (1, 2, 3))
    file = io.BytesIO()
    edited.save(file, "PNG")
    (tmp_path / "edited.png").write_bytes(image_file.with_metadata(file.getvalue(), origin))
    foreign = origin.model_copy(update={"request": {**origin.request, "link": {"snr_db": 99}}})
    (tmp_path / "foreign.png").write_bytes(image_file.with_metadata(file.getvalue(), foreign))
    (tmp_path / "text.png").write_text("no image")
    before = sorted(names(tmp_path))
    for name, told in {
        "other.png": "made by other models: model edge was eeeeeeeeeeee and is ",
        "edited.png": "1 of its pixels differ",
        "bare.png": "bare.png does not say how it was made",
        "foreign.png": "does not allow: field link.snr_db",
        "text.png": "text.png is no PNG, JPEG or WebP",
        "absent.png": "absent.png",
    }.items():
        done = await dekag("image", "--from", name, "--url", gateway_url, folder=tmp_path)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(names(tmp_path)) == before


@pytest.mark.asyncio(loop_scope="session")
async def test_a_seed_that_is_left_out_is_drawn_and_names_the_file(gateway_url: str, tmp_path: Path) -> None:
    done = await dekag("image", "a boat", "--url", gateway_url, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == [f"a-boat-{json.loads(done.stdout)['seed']}.png"]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--snr-db", "99"], r"--snr-db must be a number of at least -20\.0 and at most 40\.0"),
        (["--size", "1x1"], r"--size must be WIDTHxHEIGHT"),
        (["--cbr", "auto"], r"--target-psnr-db must be a PSNR in dB when cbr is auto"),
        (["--knowledge", "no-such-topic"], r"no-such-topic"),
    ],
)
async def test_a_refused_field_is_named_with_what_it_allows(
    gateway_url: str, tmp_path: Path, options: list[str], told: str
) -> None:
    done = await dekag("image", "a boat", "--url", gateway_url, "--json", *options, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(told, done.stderr)
    assert not names(tmp_path)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_delivery_that_does_not_decode_leaves_a_report_and_no_file(
    gateway_url: str, tmp_path: Path
) -> None:
    options = ["--delivery", "conventional", "--snr-db", "-20", "--fading", "awgn", "--json"]
    done = await dekag("image", "a boat", "--url", gateway_url, *options, folder=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["decoded"] is False
    assert "did not decode" in done.stderr
    assert not names(tmp_path)


@pytest.mark.asyncio(loop_scope="session")
async def test_distilling_says_what_was_learned(gateway_url: str, distiller: None, tmp_path: Path) -> None:
    small = ["--images", "4", "--steps", "4", "--rank", "1", "--tokens", "1"]
    command = ["distill", "watercolour", "--url", gateway_url, "--json"]
    done = await dekag(*command, *small, folder=tmp_path)
    async with httpx2.AsyncClient(trust_env=False) as client:  # no other test finds it
        await client.delete(f"{gateway_url}/v1/knowledge/watercolour")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["topic"], told["version"]) == ("watercolour", 1)
    assert told["scores"]
    assert all((tmp_path / name).is_file() for name in told["pictures"])
    assert "Distilling watercolour" in done.stderr

    refused = await dekag(*command, "--steps", "1", folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "steps must be an integer of at least 2" in refused.stderr


def test_a_gateway_that_cannot_be_reached_says_how_to_start_one(
    tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["image", "a boat", "--url", f"http://127.0.0.1:{closed_port}"])
    assert done.exit_code == 1
    assert "dekag up" in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_url_of_another_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = CliRunner().invoke(app, ["image", "a boat", "--url", f"http://127.0.0.1:{server.server_port}"])
        thread.join()
    assert done.exit_code == 1
    assert "answers 501 and is no gateway" in done.stderr


@pytest.mark.parametrize(
    "url",
    ["", "http://", "ftp://box", "http:box", "https:/box", "http://box:port", "http://a b", "http://x?y=1"],
)
@pytest.mark.parametrize("command", [["image", "a boat"], ["publish", "."], ["distill", "neon"]])
def test_a_url_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command, "--url", url])
    assert done.exit_code == 2
    assert done.stderr.startswith("--url must be the URL of a gateway, such as http://127.0.0.1:8080")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://box:8080", "http://box:8080"),
        (" HTTP://Box:8080/V1/ ", "http://box:8080"),
        ("box:8080/v1", "http://box:8080"),
        ("//box", "http://box"),
        ("localhost", "http://localhost"),
        ("https://box/dekag/v1//", "https://box/dekag"),
        ("[::1]:8080/", "http://[::1]:8080"),
        ("bücher.example/v1", "http://bücher.example"),
    ],
)
def test_a_url_may_be_written_in_many_ways(written: str, meant: str) -> None:
    assert gateway_url(written) == meant
    with Client(written) as client:
        assert client.url == meant


def test_where_there_is_an_authority_a_url_without_a_scheme_is_https() -> None:
    assert gateway_url("box:8080", scheme="https") == "https://box:8080"
    assert gateway_url("http://box:8080", scheme="https") == "http://box:8080"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "prompts.txt is a folder, not a file"),
        (b"", "prompts.txt holds no prompt"),
        (b"# only\r\n\r\n# comments\r\n", "prompts.txt holds no prompt"),
        ("a café by the sea\n".encode("latin-1"), "line 1 contains the byte 0xe9"),
        (b"a boat\r\n\r\n" + b"x" * 1001, "more than 1000 characters in line 3"),
        (b"a\0b", "prompts.txt is a binary file, not text"),
        (b"a boat\n" * 10_000, "prompts.txt holds 10000 prompts"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "prompts.txt"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    done = CliRunner().invoke(app, ["distill", "neon", "--prompts-file", "prompts.txt"])
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_command_names_options_in_its_errors_as_they_are_typed() -> None:
    def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, each in group.commands.items():
            yield from (
                commands(each, f"{path} {name}") if hasattr(each, "commands") else [(f"{path} {name}", each)]
            )

    found = dict(commands(typer.main.get_command(app), "dekag"))
    assert {"dekag link", "dekag train latents", "dekag bench sweep", "dekag profile check"} <= set(found)
    assert [name for name, each in found.items() if not isinstance(each, Command)] == []


def test_an_error_within_a_group_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(32):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    options = ["--profile", "stickers", "--pictures", str(tmp_path), "--count", "33", "--out", "out"]
    done = CliRunner().invoke(app, ["train", "latents", *options])
    assert done.exit_code == 2
    assert done.stderr == "--count must be at most 32, the number of pictures; got '33'\n"


def test_prompts_are_read_as_editors_write_them(tmp_path: Path) -> None:
    text = "# boats\n\na red café\n  a blue boat \n\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for newline in ("\n", "\r\n", "\r"):
            (tmp_path / "prompts").write_bytes(text.replace("\n", newline).encode(encoding))
            assert read_prompts(tmp_path / "prompts") == ["a red café", "a blue boat"]


@pytest.mark.parametrize(
    "command",
    [
        ["image", "a boat", "--output", "file/boat.png"],
        ["distill", "neon", "--output", "file"],
        ["demo", "--output", "file/out"],
        ["sweep", "grid.yaml", "--results", "file"],
        ["train", "knowledge", "--out", "file"],
        ["train", "codec", "--runs", "file/runs"],
        ["credentials", "file"],
    ],
)
def test_where_nothing_can_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "grid.yaml").write_text("{name: a, deliveries: [unaligned]}")
    done = CliRunner().invoke(app, command)
    assert done.exit_code in (1, 2)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["image", "a boat", "--cbr", "much"], "--cbr: must be a number, a fraction such as 1/96"),
        (["image", "a boat", "--cbr", "1/0"], "--cbr"),
        (["image", "a boat", "--snr-db", "nan"], "--snr-db': must be a finite number"),
        (["image", "a boat", "--seed", "-1"], "--seed': Input should be greater than or equal to 0"),
        (["image"], "dekag image: Missing argument 'prompt'"),
        (["image", "--from", "a.png", "--snr-db", "3"], "leave out --snr-db"),
        (["image", "a boat", "--from", "a.png"], "leave out prompt"),
        (
            ["credentials", "x", "--days", "5"],
            "'--days': Input should be greater than or equal to 31 (allowed: 31 to 3650)",
        ),
        (["train", "vae", "--steps", "1"], "dekag train vae: Invalid value for '--steps'"),
        (["train", "vae", "--profile", "sketches"], "must be one of stickers"),
        (["demo", "--prompt", " "], "prompt must be 1 to 1000 characters, not blank"),
        (["demo", "--seed", str(2**63)], "seed must be between 0 and 2**63 - 1"),
        (["compare", "kodak/vtm", "kodak/vtm", "--plot", "x.png"], "--plot must be a file ending in .svg"),
        (["sweep", "no-such-grid"], "there is no file and no shipped sweep 'no-such-grid'"),
        (["--no-such-option"], "dekag: No such option: --no-such-option"),
        (["no-such-command"], "dekag: No such command 'no-such-command'"),
    ],
)
def test_an_invalid_command_line_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        "profile check",
        "profile fetch",
        "train knowledge --profile",
        "train golden --profile",
        "experiment first-image --profile",
        "experiment restoration --profile",
        "bench parts --profile",
    ],
)
def test_a_profile_that_does_not_exist_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command.split(), "nowhere"])
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1] == "no profile 'nowhere': nowhere/profile.json does not exist"
    assert "Traceback" not in done.output


def test_a_demo_of_no_profile_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEKAG_PROFILE", "nowhere")
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "no profile 'nowhere': nowhere/profile.json does not exist"
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFoundError("x"), 2), (UnauthorizedError("x"), 2), (UnavailableError("x"), 1), (DekagError("x"), 1)],
)
def test_the_exit_status_is_2_where_another_request_would_succeed(
    monkeypatch: pytest.MonkeyPatch, error: DekagError, status: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("services.cli.publish.run_publish", fails)
    assert CliRunner().invoke(app, ["publish", "."]).exit_code == status


@pytest.mark.parametrize("group", [[], ["train"], ["bench"]])
def test_a_group_without_a_command_shows_its_help(group: list[str]) -> None:
    done = CliRunner().invoke(app, group)
    assert "Usage: dekag" in done.output


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red boat, pastel style", "a-red-boat-pastel-style-5.png"),
        ("../../x", "x-5.png"),
        ("!", "image-5.png"),
    ],
)
def test_files_are_named_after_prompt_and_seed(prompt: str, name: str) -> None:
    assert default_name(prompt, 5) == name
    assert len(default_name("long " * 100, 5)) < 64


def test_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("dekag 0.")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dekag ", {"up", "image", "sweep", "distill", "train", "experiment", "doctor"}),
        ("dekag image --de", {"--delivery"}),
    ],
)
def test_the_shell_completes(words: str, offered: set[str]) -> None:
    env = {
        "_DEKAG_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = CliRunner().invoke(app, [], env=env, prog_name="dekag")
    assert done.exit_code == 0
    assert offered <= set(done.output.split())


def test_help_comes_without_torch() -> None:
    program = "import sys, services.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=environment(), timeout=60).returncode == 0


def test_measurements_of_another_profile_do_not_replace_the_committed_ones(tmp_path: Path) -> None:
    from dekag.evaluation.registry import RESULTS
    from services.cli.evaluate import _targets

    assert _targets("stickers")["results"] == RESULTS
    other = _targets(str(tmp_path / "mine"))
    assert other == {"profile": str(tmp_path / "mine"), "results": Path("runs/mine/results")}


WITHOUT_MODELS = {
    "experiment": {"first-minute", "metrics"},
    "bench": {"simulate", "channel", "ldpc", "update-size", "full-size", "scale", "upgrade", "page"},
}
"""Measurements of no profile: they load no models, or bring their own."""


@pytest.mark.parametrize("group", WITHOUT_MODELS)
def test_what_is_measured_of_models_is_measured_of_any_profile(group: str) -> None:
    commands = typer.main.get_command(app).commands[group].commands
    with_profile = {
        name
        for name, command in commands.items()
        if any("--profile" in parameter.opts for parameter in command.params)
    }
    assert commands.keys() - with_profile == WITHOUT_MODELS[group]
    text = Path("docs/real-models.md").read_text()
    assert not [name for name in WITHOUT_MODELS[group] if f"`{name}`" not in text]


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("sweep", "dekag.evaluation.sweeps.command.bench_sweep"),
        ("web-page", "services.bench.web_page.run_web_page_bench"),
    ],
)
def test_a_benchmark_of_another_profile_keeps_its_results_apart(
    monkeypatch: pytest.MonkeyPatch, command: str, function: str
) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(function, lambda *_, **options: asked.update(options))
    done = CliRunner().invoke(app, ["bench", command, "--profile", "folder/mine"])
    assert done.exit_code == 0, done.output
    assert (asked["profile"], asked["results"]) == ("folder/mine", Path("runs/mine/results"))


@pytest.mark.parametrize(
    ("command", "module"), [("image", "services.cli.image"), ("distill", "services.cli.distill")]
)
def test_a_client_waits_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, module: str
) -> None:
    """A system may be slower than a client waits by default."""
    waits: list[float] = []

    def noted(url: str, *, timeout_s: float) -> Client:
        waits.append(timeout_s)
        return Client(url, timeout_s=timeout_s)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"{module}.Client", noted)
    for options, status in (([], 1), (["--timeout-s", "300"], 1), (["--timeout-s", "0"], 2)):
        done = CliRunner().invoke(app, [command, "a-boat", "--url", "http://127.0.0.1:1", *options])
        assert done.exit_code == status, done.output
    assert "--timeout-s must be above 0" in done.stderr
    assert waits == [inspect.signature(Client).parameters["timeout_s"].default, 300, 0]
    made = CliRunner().invoke(app, [command, "a-boat", "--timeout-s", "nan"])
    assert made.exit_code == 2
    assert "must be a finite number" in made.stderr


def test_a_comparison_says_what_its_columns_are() -> None:
    done = CliRunner().invoke(app, ["compare", "kodak/vtm", "kodak/hm"])
    assert done.exit_code == 0, done.output
    assert "curve from" in done.output
    assert "publication" in done.output
    assert "shared range: the part of the range of PSNR of both curves that both reach" in done.output
