"""Locust's users, shapes and options, headless or with Locust's web page.

    locust -f services/bench/loadtest/locustfile.py

What is asked and when is decided in `services.bench.loadtest.scenario`, what comes of it in
`services.bench.loadtest.report`. Several generators (`--processes`, or `--master --expect-workers` and
`--worker` on several machines) share the users among them. At the end they send their answers to the master,
which writes one report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import FastHttpUser, LoadTestShape, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from rich.markdown import Markdown

from dekag.client import CA_FILE, Client, authorization, gateway_url, trusting
from dekag.console import plain_console
from dekag.errors import DekagError
from dekag.files import check_folder
from dekag.makd.topics import matching, read_topics, topic_triggers
from dekag.profile import load_profile
from services.bench.loadtest.containers import ENGINE_ERRORS, ComposeProject, Snapshot, compare
from services.bench.loadtest.measure import measured_quality
from services.bench.loadtest.report import Answer, log_lines, service_traffic, write_report
from services.bench.loadtest.scenario import (
    SHAPES,
    Arrival,
    PromptCatalogue,
    Scenario,
    UserProfile,
    own_templates,
    users_at,
)
from services.common.environment import get

# an empty variable is none, as for the services; Locust itself would read numbers from it
for _name in [name for name in os.environ if name.startswith("LOCUST_") and not os.environ[name].strip()]:
    del os.environ[_name]

logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request otherwise

DEFAULT_DURATION_S = 60.0
IDLE_S = 10.0  # at rest services look at Redis every few seconds; rarer checks are a few hundred bytes each
PATH = "/v1/images/generations"
END, ANSWERS, ALL_SENT = "dekag-end", "dekag-answers", "dekag-all-sent"
"""Messages: the master tells its generators that the load ends; they send answers, and that that was all."""
ANSWERS_AT_ONCE = 100  # in a message
ANSWERS_TIMEOUT_S = 180.0  # for those of all generators; a request takes at most half of it


class Run:
    """One run: what is asked, by whom, and what came of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.scenario = _scenario(options)
        self.catalogue = PromptCatalogue(self.scenario)
        self.indices = count()  # of users
        self.all_sent: set[str] = set()  # generators that have sent all their answers
        self.answers: list[Answer] = []
        self.bodies: dict[str, dict[str, Any]] = {}  # of requests, by id
        self.triggers = topic_triggers(read_topics(load_profile(options.topics_of).topics))
        self.in_flight = Group()  # outlives the users, so that a shape can take them away at once
        self.start = time.monotonic()
        self.load_s = 0.0
        self.project: ComposeProject | None = None  # of the process that writes the report
        self.before: Snapshot | None = None

    def traffic(self) -> tuple[list[str] | None, dict[str, Any] | None]:
        """Lines of the services' logs, and what containers counted beside them; None where not asked for."""
        if self.project is None:
            return (log_lines(Path(self.options.logs)) if self.options.logs else None), None
        log: list[str] | None = None
        try:
            if self.before is None:
                raise ValueError("the counters could not be read before the run")
            after = self.project.snapshot()
            log = self.project.log(self.before.at_s)
            gevent.sleep(IDLE_S)
            idle = self.project.snapshot()
            found = compare(
                self.before,
                after,
                idle,
                service_traffic(log),
                http_received_bytes=sum(answer.sent_bytes for answer in self.answers),
                http_sent_bytes=sum(answer.received_bytes for answer in self.answers),
            )
        except (*ENGINE_ERRORS, ValueError) as error:
            return log, {"not_told": str(error)}
        return log, found


class _Current:
    run: Run


def _trusted() -> ssl.SSLContext:
    """Believes certificates of the authority in DEKAG_CA_FILE, or of those that this machine knows."""
    authority = os.environ.get(CA_FILE)
    return trusting(authority) if authority else ssl.create_default_context()


class LoadUser(FastHttpUser):
    """Asks as its visitor does: a request goes out at its time, answered or not what went before it."""

    concurrency = 10_000  # connections are opened as they are needed; none waits for another
    connection_timeout = network_timeout = 90.0  # s
    insecure = False  # Locust believes any certificate by itself, and the API key goes along
    ssl_context_factory = staticmethod(_trusted)

    def on_start(self) -> None:
        """The visitor's life begins."""
        self.run_of, self.began = _Current.run, time.monotonic()
        profile = UserProfile(self.run_of.scenario, self.run_of.catalogue, next(self.run_of.indices))
        self.arrivals: Iterator[Arrival] = profile.arrivals()

    def wait_time(self) -> float:
        """None: the task itself waits for the time of the next arrival."""
        return 0.0

    @task
    def send_in_time(self) -> None:
        """Wait for the next arrival and send it, without waiting for the answer."""
        arrival = next(self.arrivals)
        planned = self.began + arrival.at_s
        gevent.sleep(max(0.0, planned - time.monotonic()))
        self.run_of.in_flight.spawn(self._send, arrival, planned)

    def _send(self, arrival: Arrival, planned: float) -> None:
        run, delivery = self.run_of, arrival.body["delivery"]
        late_s = time.monotonic() - planned
        payload = json.dumps(arrival.body)
        headers = {"Content-Type": "application/json", **authorization()}
        headers["Accept-Encoding"] = "identity"
        response = self.client.post(PATH, data=payload, headers=headers, name=delivery)
        latency_s = time.monotonic() - planned
        content = response.content or b""
        error, report = _read(response.status_code, content, getattr(response, "error", None))
        request_id = str(response.headers.get("X-Request-ID", "")) if response.headers else ""
        run.bodies[request_id] = arrival.body
        run.answers.append(
            Answer(
                request_id=request_id,
                question=arrival.question,
                prompt=arrival.body["prompt"],
                delivery=delivery,
                planned_s=planned - run.start,
                late_s=late_s,
                latency_s=latency_s,
                error=error,
                sent_bytes=len(payload),
                received_bytes=len(content),
                link_report=report,
                needs=tuple(matching(arrival.body["prompt"], run.triggers)),
            )
        )


def _read(status: int, content: bytes, failure: Exception | None) -> tuple[str | None, dict[str, Any] | None]:
    """What went wrong in a few words, None if nothing did, and the link report."""
    if status == 0:
        return type(failure).__name__, None
    try:
        body = json.loads(content)
        if status == 200:
            report: dict[str, Any] = body["data"][0]["link_report"]
            return None, report
        return f"HTTP {status} {body['title']}", None
    except (ValueError, LookupError, TypeError):
        return f"HTTP {status}, not what was expected", None


class Shape(LoadTestShape):
    """The shape that the option names, with `--users` at its height and `--run-time` as its length."""

    use_common_options: ClassVar[bool] = True

    def tick(self) -> tuple[int, float] | None:
        """Users and users/s for now; None at the end."""
        if self.runner is None or (options := self.runner.environment.parsed_options) is None:
            return None
        duration_s, users = _duration_s(options), options.num_users or 1
        if (time_s := time.perf_counter() - self.start_time) >= duration_s:
            return None
        return users_at(options.shape, time_s, users=users, duration_s=duration_s), float(users)


def _scenario(options: argparse.Namespace) -> Scenario:
    return Scenario(
        seed=options.seed,
        rate_hz=options.rate,
        conventional_share=options.conventional_share,
        trace=options.trace,
        templates=own_templates(options.topics_of),
        measure=options.measure == "yes",
    )


def _duration_s(options: argparse.Namespace) -> float:
    return float(options.run_time or DEFAULT_DURATION_S)


def _add_options(parser: Any) -> None:
    usual = Scenario()
    group = parser.add_argument_group("DeKA-g")
    group.add_argument("--shape", choices=SHAPES, default=SHAPES[0], help="How the number of users changes.")
    group.add_argument("--rate", type=float, default=usual.rate_hz, help="Arrivals of one user, 1/s.")
    group.add_argument(
        "--conventional-share",
        type=float,
        default=usual.conventional_share,
        help="Of arrivals that ask again for the same image, conventionally; at most 0.5.",
    )
    group.add_argument("--trace", default=usual.trace, help="That the SNR of moving users follows.")
    group.add_argument(
        "--topics-of",
        default=get("DEKAG_PROFILE", "stickers"),
        help="Profile whose own topics are asked for, if it has some.",
    )
    group.add_argument("--seed", type=int, default=usual.seed, help="Seeds what is asked and when.")
    group.add_argument(
        "--measure",
        choices=("yes", "no"),
        default="yes",
        help="Whether the system measures the quality of each image; no: the load is serving alone.",
    )
    group.add_argument(
        "--quality-images",
        type=int,
        default=40,
        help="Answers whose quality is measured after the run, for files of equal quality; 0: none.",
    )
    group.add_argument("--report", default="loadtest-out", help="Folder for the report.")
    group.add_argument("--logs", default="", help="Folder of the services' logs, which count bytes.")
    group.add_argument(
        "--compose-project",
        default="",
        help="Compose project whose containers' logs and network counters are read; instead of --logs.",
    )


def _check(environment: Environment, **_: Any) -> None:
    if environment.parsed_options is None:
        raise SystemExit("the load test is started from the command line: locust -f locustfile.py")
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message(END, _end)
        return  # the master checks its own options, and tells its workers what they are
    if isinstance(environment.runner, MasterRunner):
        if environment.parsed_options.expect_workers < 1:
            raise SystemExit("--expect-workers: must be the number of generators, at least 1")
        environment.runner.register_message(ANSWERS, _take_answers)
        environment.runner.register_message(ALL_SENT, _take_answers)
    if environment.parsed_options.logs and environment.parsed_options.compose_project:
        raise SystemExit("--compose-project reads the containers' logs: leave out --logs")
    try:
        check_folder(environment.parsed_options.report)  # now, and not when all has been measured
        _trusted()
        authorization()
        if environment.host is not None:
            environment.host = gateway_url(
                environment.host, scheme="https" if os.environ.get(CA_FILE) else "http"
            )
        _scenario(environment.parsed_options)
        if environment.parsed_options.compose_project:
            ComposeProject(environment.parsed_options.compose_project).snapshot()
    except (*ENGINE_ERRORS, DekagError, ValueError) as error:
        raise SystemExit(str(error)) from error


def _begin(environment: Environment, **_: Any) -> None:
    if environment.parsed_options is not None:  # never, of a run from the command line
        _Current.run = run = Run(environment.parsed_options)
        if isinstance(environment.runner, WorkerRunner):
            # together, the users of all generators are those of one
            index, generators = environment.runner.worker_index, environment.parsed_options.expect_workers
            if index >= generators:
                logging.error("there are more generators than --expect-workers says, %d", generators)
                environment.runner.quit()
            run.indices = count(index, generators)
            return
        if environment.parsed_options.compose_project:
            run.project = ComposeProject(environment.parsed_options.compose_project)
            with contextlib.suppress(*ENGINE_ERRORS, ValueError):  # the report says so
                run.before = run.project.snapshot()


def _note_length(**_: Any) -> None:
    _Current.run.load_s = time.monotonic() - _Current.run.start


def _end(environment: Environment, **_: Any) -> None:
    """The load ends here, too: Locust's master would only tell once it has no more need of the answers."""
    if environment.runner is not None:
        environment.runner.stop()


def _take_answers(environment: Environment, msg: Any, **_: Any) -> None:
    """What a generator has sent."""
    run = _Current.run
    if msg.type == ALL_SENT:
        run.all_sent.add(msg.node_id)
        return
    for answer, body in msg.data["rows"]:
        run.answers.append(Answer(**{**answer, "needs": tuple(answer["needs"])}))
        run.bodies[answer["request_id"]] = body


def _send_answers(runner: WorkerRunner, generators: int) -> None:
    if runner.worker_index >= generators:  # one too many, which has no part in the report
        return
    run = _Current.run
    rows = [(asdict(answer), run.bodies[answer.request_id]) for answer in run.answers]
    for first in range(0, len(rows), ANSWERS_AT_ONCE):
        runner.send_message(ANSWERS, {"rows": rows[first : first + ANSWERS_AT_ONCE]})
    runner.send_message(ALL_SENT)


def _await_answers(runner: MasterRunner, generators: int) -> int:
    """End the load of all generators and wait for their answers; returns how many have not sent all."""
    run, started = _Current.run, time.monotonic()
    runner.send_message(END)
    while len(run.all_sent) < generators and time.monotonic() - started < ANSWERS_TIMEOUT_S:
        gevent.sleep(0.1)
    return generators - len(run.all_sent)


def _report(environment: Environment, **_: Any) -> None:
    run, console, generators = _Current.run, plain_console(), 1
    run.in_flight.join()
    if isinstance(environment.runner, WorkerRunner):
        _send_answers(environment.runner, run.options.expect_workers)
        return
    if isinstance(environment.runner, MasterRunner):
        generators = run.options.expect_workers
        if missing := _await_answers(environment.runner, generators):
            console.print(
                f"{missing} of {generators} generators did not send all their answers: there is no report",
                style="red",
            )
            environment.process_exit_code = 1
            return
    options, folder = run.options, Path(run.options.report)
    log, containers = run.traffic()
    demand = _demand(str(environment.host))
    settings = {
        "url": environment.host,
        "shape": options.shape,
        "users": options.num_users,
        "generators": generators,
        "duration_s": _duration_s(options),
        "rate_hz": options.rate,
        "conventional_share": options.conventional_share,
        "trace": options.trace,
        "topics_of": options.topics_of,
        "measure": options.measure,
        "seed": options.seed,
    }
    url = str(environment.host)
    quality = measured_quality(
        run.answers, run.bodies, url, options.topics_of, most=options.quality_images, console=console
    )
    summary = write_report(
        folder,
        run.answers,
        settings,
        load_s=run.load_s,
        updates=_updates(url),
        log=log,
        containers=containers,
        quality=quality,
        demand=demand,
    )
    console.print(Markdown("\n".join(summary)))
    if not any(answer.error is None for answer in run.answers):
        environment.process_exit_code = 1
    console.print(f"Report: {folder / 'report.md'}", soft_wrap=True)


def _updates(url: str) -> dict[str, int]:
    """Bytes of each topic's current update; empty where the gateway does not say."""
    try:
        with Client(url, timeout_s=10) as client:
            return {each.topic: each.size_bytes for each in client.knowledge()}
    except (DekagError, ValueError, LookupError):
        return {}


def _demand(url: str) -> dict[str, Any] | None:
    """What the demand policy has counted and decided; None where the gateway does not say."""
    try:
        with Client(url, timeout_s=10) as client:
            return client.demand().model_dump()
    except (DekagError, ValueError, LookupError):
        return None


for _event, _listener in (
    (events.init_command_line_parser, _add_options),
    (events.init, _check),
    (events.test_start, _begin),
    (events.test_stopping, _note_length),
    (events.test_stop, _report),
):
    _event.add_listener(_listener)  # type: ignore[no-untyped-call]
