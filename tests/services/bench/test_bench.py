"""The benchmarks of the services with tiny models; what they measure is never asserted, only what they do."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from grpc import aio
from rich.console import Console
from typer.testing import CliRunner

from dekag.errors import MismatchError, NotFoundError
from dekag.evaluation.pages import NotMeasuredError, Row
from dekag.evaluation.registry import MISSING, read_figures
from dekag.evaluation.statistics import ratio_of_medians
from dekag.generation.models import Generator
from dekag.generation.prompts import PromptReader
from dekag.profile import load_profile
from services.bench import channel, growth, ldpc, overload, throughput
from services.bench.channel import run_channel_bench
from services.bench.conventional import HARQ, LINKS, conventional_rows, record_receiving
from services.bench.cost import SIZE, run_cost_bench, sides_of
from services.bench.distill import default_topics
from services.bench.fastapi_server import create_app
from services.bench.latency import run_cached_bench, run_chain_bench
from services.bench.ldpc import run_ldpc_bench
from services.bench.loadtest.backhaul import policies
from services.bench.overload import run_overload_bench
from services.bench.parts import (
    _decoders,
    _drawing_parts,
    _link_parts,
    _network_parts,
    _timed,
    run_parts_bench,
    updates_of,
)
from services.bench.pipeline import InProcessPipeline, as_json
from services.bench.processes import chain
from services.bench.recorded_downlink import handler, name_of, recording
from services.bench.report import (
    BENCHES,
    KEYS,
    LOAD,
    PERFORMANCE,
    alone_table,
    policies_table,
    traffic_table,
)
from services.bench.restoration import PHASES, run_restoration_bench
from services.bench.results_io import path_of, read_bench, write_bench
from services.bench.start import ALL, KILLED, descendants, memory, pids_of_each, run_start_bench
from services.bench.throughput import (
    OURS,
    PREDICT,
    Contender,
    measure,
    prompts_of_the_world,
    ratios,
    record_headlines,
    run_throughput_bench,
)
from services.bench.traffic import (
    BY_CONSISTENCY,
    BY_PSNR,
    backhaul_saved,
    radio_ratio,
    run_traffic_bench,
)
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.cli.main import app
from services.launcher.fork_server import Event, Forked, ForkServer
from services.launcher.stack import Child, LaunchError, Stack
from services.proto.downlink_pb2_grpc import add_DownlinkServicer_to_server
from tests.chain import QUALITY, RESTORATION, adapters, with_adapters, with_evaluators, with_own_topics
from tests.processes import free_port
from tests.services.cloud.test_publish import make_update

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def pipeline(dummy_profile: Path) -> InProcessPipeline:
    return InProcessPipeline(str(dummy_profile))


@pytest.fixture(scope="module")
def fastapi_url(pipeline: InProcessPipeline) -> Iterator[str]:
    """The plain FastAPI handler, in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(pipeline), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_a_batch_gives_the_pictures_that_its_prompts_give_alone(pipeline: InProcessPipeline) -> None:
    prompts, seeds = ["a red boat", "a blue cat on the beach"], [3, 4]
    both = pipeline.deliver(prompts, seeds)
    for prompt, seed, image in zip(prompts, seeds, both, strict=True):
        (alone,) = pipeline.deliver([prompt], [seed])
        assert image.png.startswith(b"\x89PNG")
        assert image.psnr_db == pytest.approx(alone.psnr_db, abs=0.2)


def test_the_pipeline_keeps_what_the_services_keep(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[Generator] = []
    monkeypatch.setattr(Generator, "trace", lambda generator: traced.append(generator))
    bare = InProcessPipeline(str(dummy_profile))
    decoder = bare._link.generator.decoder
    assert len(traced) == 1
    decoded: list[torch.Tensor] = []
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda latents: (decoded.append(latents), decode(latents))[1])
    latents = bare.latents(["a cat", "a dog"], [1, 2])
    first = bare.send(latents, ["a cat", "a dog"], [1, 2])
    assert [each.shape[0] for each in decoded] == [1, 1, 1, 1], "images one by one, and those that were sent"
    decoded.clear()
    assert bare.send(latents, ["a cat", "a dog"], [1, 2]) == first
    assert len(decoded) == 2, "only what arrived"


def test_the_pipeline_reads_a_prompt_for_the_codec_once(
    pipeline: InProcessPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(pipeline._link.sender, "codec", SimpleNamespace(text_width=8))
    monkeypatch.setattr(
        PromptReader, "side_information", lambda _, prompt: (read.append(prompt), torch.zeros(1, 8))[1]
    )
    assert pipeline._states("a pink cat") is pipeline._states("a pink cat")
    assert read == ["a pink cat"]


def test_the_fastapi_handler_answers_with_the_pipelines_picture(
    fastapi_url: str, pipeline: InProcessPipeline
) -> None:
    question = {"prompt": "a red boat", "seed": 5}
    answer = httpx2.post(f"{fastapi_url}/predict", json=question, trust_env=False, timeout=60)
    (image,) = pipeline.deliver(["a red boat"], [5])
    assert answer.json() == as_json(image)
    assert base64.b64decode(answer.json()["b64_json"]).startswith(b"\x89PNG")
    assert httpx2.get(f"{fastapi_url}/health", trust_env=False).status_code == 200


def test_users_ask_for_a_picture_of_their_own_each(fastapi_url: str) -> None:
    contender = Contender("fastapi", fastapi_url, PREDICT)
    found = measure(contender, users=2, requests=3, prompts=prompts_of_the_world(2), first_seed=10)
    assert found["images"] == 3 + 2 * 2
    assert found["images_per_s"] > 0
    assert 0 < found["p50_s"] <= found["p95_s"]


def test_a_server_that_does_not_answer_is_an_error(fastapi_url: str, closed_port: int) -> None:
    for url in (f"http://127.0.0.1:{closed_port}", f"{fastapi_url}/nothing-here"):
        with pytest.raises(LaunchError, match="answer"):
            measure(Contender("it", url, PREDICT), users=1, requests=1, prompts=["a cat"], first_seed=0)


def test_a_chain_that_is_measured_draws_nothing_unasked() -> None:
    assert chain("any", "stickers").env["DEKAG_WATCH_SHARE"] == "0"


@pytest.mark.parametrize("users", ["", "0,1", "2,2", "many"])
def test_numbers_of_users_that_make_no_sense_are_refused(users: str) -> None:
    done = CliRunner().invoke(app, ["bench", "throughput", "--users", users])
    assert done.exit_code == 2
    assert "--users" in done.output


def rows_of_throughput() -> list[dict[str, Any]]:
    speeds = {OURS: (12.0, 15.0), "litserve": (6.0, 10.0), "fastapi": (4.0, 5.0)}
    return [
        {"round": 0, "users": users, "server": name, "images_per_s": speed}
        | {"p50_s": 0.1, "p95_s": 0.2, "psnr_db": 25.0, "images": 20}
        for name, both in speeds.items()
        for users, speed in zip((8, 16), both, strict=True)
    ]


def test_the_headline_is_the_worse_of_8_and_16_users(tmp_path: Path) -> None:
    rows = rows_of_throughput()
    assert ratios(rows, "litserve", 8) == [2.0]
    record_headlines([row for row in rows if row["users"] == 8], tmp_path)
    assert not (tmp_path / "headline.json").exists()
    record_headlines(rows, tmp_path)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert {key: figure["value"] for key, figure in figures.items()} == {
        "bench_litserve_ratio": 1.5,
        "bench_fastapi_ratio": 3.0,
    }


async def test_a_channel_bends_the_recorded_symbols(start: Any) -> None:
    uses = (16, 40_000)  # one block of symbols, and two
    downlink = aio.server()
    downlink.add_generic_rpc_handlers((handler({name_of(each): recording(each) for each in uses}),))
    port = downlink.add_insecure_port("127.0.0.1:0")
    await downlink.start()
    try:
        settings = ChannelSettings(port=0, downlink_address=f"127.0.0.1:{port}")
        address = await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings)
        await channel._check(address, uses)
        assert await channel._through(address, 16, transmissions=3, streams=2) > 0
    finally:
        await downlink.stop(None)


def test_the_channels_figure_is_that_of_the_size_where_it_is_slowest(tmp_path: Path) -> None:
    speeds = {512: (1.0, 10.0), 2_048: (1.0, 20.0), 8_192: (4.0, 8.0)}
    rows = [
        {"round": number, "way": way, "channel_uses": uses, "symbols_per_s": speed}
        for number in range(2)
        for uses, both in speeds.items()
        for way, speed in zip(("service", "sionna"), both, strict=True)
    ]
    channel.record_lowest(rows, tmp_path)
    assert read_figures(tmp_path)["bench_channel_ratio"]["value"] == 0.05
    assert channel.CHANNEL_USES == (512, 2_048, 8_192, 32_768)


def test_sionna_and_the_library_do_the_same_in_this_process() -> None:
    assert channel._bare(64, 2) > 0
    assert channel._library(64, 2) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_fork_counts_once_and_not_as_part_of_the_fork_server(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    with subprocess.Popen(["/bin/sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        started = int(process.stdout.readline())
        try:
            stack.children.append(Child("parent", 0, tmp_path / "log", process, lambda: True))
            assert pids_of_each(stack) == {"parent": [process.pid, started]}
            fork = Forked(ForkServer({}))
            fork.note(Event(1, started))
            stack.children.append(Child("fork", 0, tmp_path / "log", fork, lambda: True))
            assert pids_of_each(stack) == {"parent": [process.pid], "fork": [started]}
        finally:
            os.kill(started, signal.SIGTERM)


def test_memory_is_that_of_a_process_and_its_children() -> None:
    held = memory([os.getpid()])
    assert 0 < held["pss_gib"] <= held["rss_gib"] < 64
    assert os.getpid() in descendants(os.getppid())


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match="dekag bench chain"):
        read_bench("chain", tmp_path)
    write_bench("chain", {"requests": 1}, [{"request": 0, "services_s": 0.123456789}], tmp_path)
    bench = read_bench("chain", tmp_path)
    assert bench["rows"] == [{"request": 0, "services_s": 0.123457}]
    assert bench["config"] == {"requests": 1}
    assert bench["machine"]["cpus"] == os.cpu_count()
    assert path_of("chain", tmp_path).read_text().count("\n") > 10


def test_interval_of_a_ratio_of_medians() -> None:
    theirs = [1.0] * 101
    ours = [1 + index / 100 for index in range(101)]
    ratio, (low, high) = ratio_of_medians(ours, theirs)
    assert ratio == 1.5
    assert (low, high) == pytest.approx((1.4, 1.6), abs=0.02)
    assert ratio_of_medians([2.0], [1.0]) == (2.0, [2.0, 2.0])


def test_a_ratio_lies_inside_its_interval_whatever_the_pairs() -> None:
    ours, theirs = [0.9] * 49 + [2.0] * 52, [1.0] * 60 + [1.9] * 41  # most pairs have a smaller ratio
    ratio, (low, high) = ratio_of_medians(ours, theirs)
    assert low <= ratio <= high


def load_page(results: Path) -> str:
    return LOAD.render((DOCS / LOAD.page).read_text(), results)


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    text = load_page(tmp_path)
    assert all(f"`dekag bench {name}`: {MISSING}." in text for name in BENCHES)
    config = {"requests": 48, "rounds": 1, "users": [8, 16], "prompts": 16}
    write_bench("throughput", config, rows_of_throughput(), tmp_path)
    record_headlines(rows_of_throughput(), tmp_path)
    text = load_page(tmp_path)
    assert "| DeKA-g's services | 12.00 | 15.00 |" in text
    assert "| FastAPI handler | 3 | 3 |" in text
    assert "| at least 3 | 1.50 |  | 1 | missed by 1.5 |" in text
    assert list(LOAD.draw(tmp_path)) == ["results-load-throughput.svg", "results-load-growth.svg"]


def test_overload_figures_are_computed_from_its_rows() -> None:
    rows = [
        {"phase": "loaded", "at_s": 0.0, "status": 200, "latency_s": 1.0},
        *({"phase": "overload", "at_s": 0.0, "status": 200, "latency_s": 1.5} for _ in range(4)),
        *({"phase": "overload", "at_s": 0.0, "status": 429, "latency_s": 0.01} for _ in range(3)),
        {"phase": "overload", "at_s": 0.0, "status": 503, "latency_s": 0.2},
    ]
    config = {"times": 4.0, "seconds": 2.0, "loaded_s": 1.0, "pss_gib_before": 1.0, "pss_gib_after": 1.1}
    full, far, refused, others = overload.summary(config, rows)
    assert full[1:4] == ["1", "1.00", "1.000"]
    assert far == ["served under 4 times that", "4", "2.00", *["1.500"] * 3]
    assert refused == ["refused with status 429", "3", "", *["0.010"] * 3]
    assert others[:2] == ["another status or none", "1"]


def load_test(folder: Path) -> Path:
    """What a load test of three requests writes, in little."""
    link = {
        "snr_db": 10.0, "fading": "rayleigh", "tau_rms_s": 1e-7, "rician_k_db": None, "speed_m_s": 0.0,
        "trace": None, "trace_start_s": 0.0, "csi": "perfect", "equalizer": "mmse",
    }  # fmt: skip
    report = {**link, "seed": 1, "psnr_db": 12.0, "channel_uses": 500, "pilot_uses": 12, "knowledge": []}
    report["hops"] = [{"hop": "cloud-edge", "sent_bytes": 0}]
    line = {"prompt": "a cat", "delivery": "semantic", "error": None, "link_report": report, "needs": []}
    line["consistency"] = None
    neon = {**report, "psnr_db": 99.0, "knowledge": [{"topic": "neon"}]}
    lines = [
        line,
        {**line, "link_report": neon, "needs": ["neon"], "consistency": 0.5},
        {**line, "delivery": "conventional"},
        {**line, "error": "HTTP 429", "link_report": None},
    ]
    figures = {
        "settings": {"users": 2, "shape": "steady", "url": "http://here"}, "commit": "0", "requests": 4,
        "answered": 3, "latency_s": {}, "containers": {"counters_gap_percent": 1.5, "counters_bytes": 2000,
        "interceptors_bytes": 1970, "rows": []},
        "savings": {
            "questions": 1, "backhaul_bytes": {"n": 0}, "channel_uses": {"n": 1, "saved_percent": 90.0},
        },
        "knowledge": {"neon": {"requests": 1, "update_bytes": 9000, "bytes_per_request": 9000.0}},
        "verdict": "9,000 B cloud-edge", "backhaul": {"bytes": 9000, "curves": {"ours": [[1, 0], [2, 9000]]}},
    }  # fmt: skip
    folder.mkdir()
    (folder / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (folder / "report.json").write_text(json.dumps(figures))
    return folder


def test_traffic_is_held_against_files_that_show_no_less(dummy_profile: Path, tmp_path: Path) -> None:
    profile = with_evaluators(dummy_profile, tmp_path / "profile")
    rows = run_traffic_bench(load_test(tmp_path / "load"), profile=str(profile), results=tmp_path)
    assert [(row["format"], row["psnr_db"]) for row in rows] == [
        (name, psnr) for psnr in (12.0, 99.0) for name in ("webp", "jpeg")
    ]
    (small, _, large, _) = rows
    assert small["file_psnr_db"] >= 12
    assert small["file_bytes"] < large["file_bytes"]
    assert large["file_psnr_db"] < 99, "the best that there is"
    assert [row["semantic_backhaul_bytes"] for row in rows] == [0, 0, 9000, 9000]
    assert small["semantic_channel_uses"] == 512
    saved, ratio = backhaul_saved(rows, "webp", BY_PSNR), radio_ratio(rows, "webp")
    assert saved is not None
    total = small["file_bytes"] + large["file_bytes"]
    assert saved[0] == pytest.approx(100 * (1 - 9000 / total))
    assert ratio[0] == pytest.approx((small["file_channel_uses"] + large["file_channel_uses"]) / 1024)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert figures["counters_gap_percent"]["value"] == 1.5
    equal = backhaul_saved(rows, "webp", BY_CONSISTENCY)
    assert equal is not None
    assert small["consistency_file_bytes"] is None, "its consistency was not measured"
    assert equal[0] == pytest.approx(100 * (1 - 9000 / large["consistency_file_bytes"]))
    assert large["consistency_file_bytes"] < large["file_bytes"], (
        "half as consistent, but as good a PSNR as can be"
    )
    assert figures["backhaul_saved_percent"]["value"] == pytest.approx(equal[0], abs=0.01)
    assert figures["backhaul_saved_percent"]["n"] == 1
    assert "| neon | 1 | 9,000 | 9,000 |" in load_page(tmp_path)


def test_the_page_compares_with_cached_files_and_with_topics_alone(tmp_path: Path) -> None:
    measured = {"semantic_backhaul_bytes": 60.0, "file_bytes": 400, "consistency_file_bytes": 100.0}
    measured |= {"semantic_channel_uses": 1, "file_channel_uses": 2}
    measured |= {"consistency": 0.75, "psnr_db": 20.0, "file_psnr_db": 20.5}
    images = [("a cat", "neon"), ("a cat", "neon"), ("a dog", "neon"), ("a boat", "")]
    rows = [
        {"format": name, "prompt": prompt, "seed": 1, "topics": topic, **measured}
        for prompt, topic in images
        for name in ("webp", "jpeg")
    ]
    size = {"bytes_each": 100.0}
    files: dict[str, Any] = {"webp_equal_consistency": {}, "webp_q75": {}}
    topics = [
        {"topics": its, "requests": requests, "images": different, "files": dict.fromkeys(files, size)}
        for its, requests, different in ((["neon"], 3, 2), ([], 1, 1))
    ]
    config = {
        "knowledge": {"neon": {"requests": 3, "update_bytes": 240, "bytes_per_request": 80.0}},
        "backhaul": {
            "bytes": 240.0,
            "requests": 4,
            "files": files,
            "topics": topics,
            "consistency": {"n": 4, "mean": 0.75},
            "usual_consistency": 0.99,
        },
    }
    write_bench("traffic", config, rows, tmp_path)
    table = [line.split(" | ") for line in traffic_table(tmp_path)]
    found = {cells[0][2:]: (cells[1:3], float(cells[3].split()[0])) for cells in table[2:6]}
    assert found == {
        "webp of equal consistency": (["100", "60"], 40),
        "same files, kept in a cache at the edge": (["75", "60"], 20),
        "same files, requests that need a topic only": (["100", "60"], 40),
        "same files, requests that need a topic only, kept in a cache at the edge": (["67", "60"], 10),
    }
    assert table[2][4:] == ["consistency 0.750", "consistency 0.750 |"]
    assert table[6][4:] == ["PSNR 20.5 dB", "PSNR 20.0 dB |"], "webp of equal PSNR"
    lines = policies_table(tmp_path)
    assert "with WebP of equal consistency (0.750, ours 0.750), B" in lines[0]
    assert "with WebP of quality 75 (0.990, ours 0.750), B" in lines[0]
    assert (
        "| `cached files` | every image as a file, kept in a cache of the edge | 300 | 20.0 | 300 | 20.0 |"
        in (lines)
    )
    assert "| `never` | topics as cached files, no updates | 200 | -20.0 | 200 | -20.0 |" in lines


def test_the_committed_load_test_is_replayed_from_its_counts() -> None:
    """As in the order of the run, of which it holds the replay with one kind of file, or with both."""
    config = read_bench("traffic")["config"]
    updates = {topic: own["update_bytes"] for topic, own in config["knowledge"].items()}
    found = config["backhaul"]
    counted = policies({**found, "files": {kind: {} for kind in found["files"]}}, updates)
    main = found["main"]
    in_order = found.get("policies") or found["files"][main]["policies"]
    assert counted[main] == pytest.approx(in_order)


def test_a_folder_without_a_load_test_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="make loadtest-compose"):
        run_traffic_bench(tmp_path, results=tmp_path)
    (load_test(tmp_path / "load") / "answers.jsonl").write_text("nothing\n")
    with pytest.raises(MismatchError, match="no report of a load test"):
        run_traffic_bench(tmp_path / "load", results=tmp_path)


@pytest.mark.slow
def test_parts_are_timed_and_told(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ldpc, "CODES", ldpc.CODES[-1:])
    run_ldpc_bench(codewords=2, results=tmp_path)
    rows = run_parts_bench(repeats=1, images=2, profile=str(dummy_profile), results=tmp_path)
    assert read_figures(tmp_path)["ldpc_seconds"]["n"] == 2
    parts = {row["part"] for row in rows if row["kind"] == "time"}
    assert {"text", "denoiser", "decoder", "drawing", "channel", "PNG", "hop of gRPC"} <= parts
    text = PERFORMANCE.render((DOCS / PERFORMANCE.page).read_text(), tmp_path)
    assert text.count("| 16 | ") == 1, "rows of the denoiser"
    assert MISSING not in text


def test_parts_of_a_bfloat16_profile_with_a_metaword_alone_are_timed(
    foreign_profile: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(foreign_profile, own)
    described = json.loads((own / "profile.json").read_text())
    (own / "profile.json").write_text(json.dumps({**described, "knowledge": "knowledge"}))
    make_update(own, "glow").save(own / "knowledge" / "glow")
    models = load_profile(own)
    edge = Generator.from_profile(models, "edge")
    for part in (*_network_parts(edge), *_drawing_parts(edge, models)):
        if part.images == 1:
            part.work()
    assert {vae.dtype for vae, _ in _decoders(edge).values()} == {torch.float32}
    assert edge.decoder.vae.dtype == torch.bfloat16


def test_the_channel_is_timed_with_the_symbols_of_the_profiles_images(
    dummy_profile: Path, tmp_path: Path
) -> None:
    models = load_profile(str(dummy_profile)).model_copy(update={"size": 192})
    edge = Generator.from_profile(models, "edge")
    (part,) = (each for each in _link_parts(edge, models) if each.part == "channel")
    assert part.variant == f"{3 * 192**2 // 96:,} symbols"
    part.work()
    write_bench("parts", {}, [_timed(part.part, part.variant, 1, 0.002)], tmp_path)
    assert alone_table(tmp_path)[-1] == "| channel, 1,152 symbols | 2.00 |"


def test_conventional_deliveries_are_timed_step_by_step(dummy_profile: Path) -> None:
    edge = Generator.from_profile(load_profile(str(dummy_profile)), "edge")
    rows = conventional_rows(edge, Console(quiet=True), images=1)
    assert [row["link"] for row in rows] == list(LINKS)
    for row in rows:
        assert row["bytes"] > 100
        if row["link"] == HARQ:
            assert 1 <= row["transmissions"] <= 4
            assert row["all_s"] > 0
        else:
            assert min(row[f"{step}_s"] for step in ("coding", "channel", "demodulation", "decoding")) > 0
    usual, weak = (next(row for row in rows if row["link"] == name) for name in ("10 dB", "-5 dB"))
    assert usual["rate"] > weak["rate"]


def test_the_figure_of_decoding_is_that_of_the_slowest_link(tmp_path: Path) -> None:
    rows: list[Row] = [{"kind": "time", "part": "PNG", "ms": 1.0}]
    for link, demodulation_s, decoding_s in (("10 dB", 0.01, 0.02), ("-5 dB", 0.03, 0.04)):
        steps = {"demodulation_s": demodulation_s, "decoding_s": decoding_s}
        rows += [{"kind": "conventional", "link": link, **steps}] * 2
    for all_s, slowest in ((0.05, 0.07), (0.09, 0.09)):
        harq = [{"kind": "conventional", "link": HARQ, "all_s": all_s}] * 2
        record_receiving([*rows, *harq], tmp_path, "dekag bench parts")
        figure = read_figures(tmp_path)["ldpc_seconds"]
        assert (figure["value"], figure["n"]) == (pytest.approx(slowest), 2)


def rows_of_growth() -> dict[str, list[Row]]:
    sizes: list[Row] = [
        {"kind": SIZE, "request": n, "pixels": side**2, "seconds": 0.1 * (side / 128) ** 2 + n / 100}
        for n in range(3)
        for side in (128, 256)
    ]
    link: list[Row] = [
        {"round": 0, "way": "service", "channel_uses": uses, "symbols_per_s": speed}
        for uses, speed in ((512, 2e5), (2_048, 8e5))
    ]
    return {"throughput": rows_of_throughput(), "cost": sizes, "channel": link}


def test_growth_is_told_by_its_slopes(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError):
        growth.growth_plot(tmp_path)
    assert growth.growth_values(tmp_path) == {}
    configs = {"throughput": {"users": [8, 16]}, "cost": {}, "channel": {"channel_uses": [512, 2_048]}}
    for name, rows in rows_of_growth().items():
        write_bench(name, configs[name], rows, tmp_path)
        assert "users" in growth.points(tmp_path), "what was measured, without the rest"
    points = growth.points(tmp_path)
    assert points["users"] == [(8, pytest.approx(8 / 12)), (16, pytest.approx(16 / 15))]
    assert points["pixels"] == [(128**2, pytest.approx(0.11)), (256**2, pytest.approx(0.41))]
    assert points["symbols"] == [(512, pytest.approx(0.00256)), (2_048, pytest.approx(0.00256))]
    assert growth.growth_values(tmp_path) == {
        "slope_users": "0.68", "slope_pixels": "0.95", "slope_symbols": "0.00"
    }  # fmt: skip
    assert growth.slopes([(1, 1.0), (2, 4.0)]) == [2.0], "faster than in proportion"
    table = "\n".join(growth.growth_table(tmp_path))
    assert "| pixels | 65,536 | 410.0 | 0.95 |" in table
    assert len(growth.growth_plot(tmp_path).axes) == 3


def test_decoders_are_compared_codeword_by_codeword(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldpc, "CODES", ldpc.CODES[9:10])
    monkeypatch.setattr(ldpc, "DEVIATIONS", (-6.0, 0.0, 8.0))
    lost, some, none = run_ldpc_bench(codewords=30, results=tmp_path)
    assert (lost["lost"], lost["lost_sionna"]) == (30, 30)
    assert (none["lost"], none["lost_sionna"]) == (0, 0)
    assert 0 < some["lost"] < 30
    for row in (lost, some, none):
        assert row["lost"] - row["lost_sionna"] == row["only_sionna"] - row["only_dekag"]
        assert row["cpu_s"] > 0
    text = PERFORMANCE.render((DOCS / PERFORMANCE.page).read_text(), tmp_path)
    assert "| 240 bits, 64-QAM, 2/3 |" in text
    assert f"`dekag bench parts`: {MISSING}" in text


@pytest.mark.slow
def test_every_server_is_measured(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("litserve")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "PROMPTS", 2)
    rows = run_throughput_bench(
        requests=2, rounds=1, users=(1, 2), profile=str(dummy_profile), results=tmp_path
    )
    servers = throughput.servers_of(str(dummy_profile))
    assert {(row["server"], row["users"]) for row in rows} == {(s, u) for s in servers for u in (1, 2)}
    for users in (1, 2):  # the same images, equally well received
        found = [row["psnr_db"] for row in rows if row["users"] == users]
        assert max(found) - min(found) < 0.2
    bench = read_bench("throughput", tmp_path)
    assert len(bench["rows"]) == len(rows)


@pytest.mark.slow
def test_every_other_benchmark_writes_rows_figures_and_its_part_of_the_page(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = str(dummy_profile)
    run_chain_bench(requests=2, profile=profile, results=tmp_path)
    run_cached_bench(requests=2, profile=profile, results=tmp_path)
    run_channel_bench(symbols=1_000, rounds=1, streams=2, channel_uses=(64, 65_536), results=tmp_path)
    rows = run_start_bench(rounds=1, requests=1, profile=profile, results=tmp_path)
    recovery_s = {row["service"]: row["recovery_s"] for row in rows if "recovery_s" in row}
    assert set(recovery_s) == {*KILLED, ALL}
    assert recovery_s[ALL] == max(recovery_s.values())
    rows = run_cost_bench(requests=1, profile=profile, results=tmp_path)
    assert [row["pixels"] for row in rows if row["kind"] == SIZE] == [each**2 for each in sides_of(profile)]
    rows = run_overload_bench(seconds=2, loaded_s=2, profile=profile, results=tmp_path)
    assert {row["status"] for row in rows} <= {200, 429}
    figures = json.loads((tmp_path / "headline.json").read_text())
    others = {"bench_litserve_ratio", "bench_fastapi_ratio", "distill_seconds", "counters_gap_percent"}
    others |= {
        "bench_topics_ratio",
        "soak_rss_growth_percent",
        "scale_2_edges",
        "scale_4_edges",
        "upgrade_failed_requests",
    }
    others |= {key for key in KEYS if key.startswith("page_")}
    assert set(figures) == set(KEYS) - others
    text = load_page(tmp_path)
    measured = {"chain", "cached", "channel", "start", "cost", "overload"}
    for name in BENCHES:
        assert (f"`dekag bench {name}`: {MISSING}." in text) == (name not in measured)


def test_topics_and_updates_are_those_of_the_profile(dummy_profile: Path, tmp_path: Path) -> None:
    assert default_topics(str(dummy_profile)) == ["neon", "rocket"]
    own = with_own_topics(dummy_profile, tmp_path / "own")
    assert default_topics(str(own)) == ["frost", "glow"]
    assert updates_of(load_profile(own)) == []
    for topic, count in (("frost", 1), ("glow", 1), ("ice", 1), ("sand", 4)):
        make_update(own, topic).save(own / "knowledge" / topic)
        assert len(updates_of(load_profile(own))) == count


@pytest.mark.slow
def test_memory_for_restoration_is_that_of_the_user_service(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="names no adapters"):
        run_restoration_bench(profile=str(dummy_profile), results=tmp_path)
    known = adapters(dummy_profile / "codec", 1, quality=QUALITY, restoration=RESTORATION)
    profile = with_adapters(dummy_profile, tmp_path / "profile", known)
    rows = run_restoration_bench(requests=1, profile=str(profile), results=tmp_path)
    assert [row["after"] for row in rows] == list(PHASES)
    assert all(0 < row["pss_gib"] <= row["rss_gib"] for row in rows)
    assert load_page(tmp_path).count("| first restored image |") == 1
