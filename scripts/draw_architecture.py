"""Draw docs/images/architecture.svg from the code: ``python scripts/draw_architecture.py [--check]``.

Which services there are, on which ports, who is told whose address and who shares a volume stands in
docker-compose.yml; which RPCs there are in the contracts; which of them a service calls, and whether it uses
Redis, in its modules.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from dekag.documents import read_yaml
from services.proto import cloud_pb2, downlink_pb2, user_pb2

ROOT = Path(__file__).parents[1]
COMPOSE, PICTURE = ROOT / "docker-compose.yml", ROOT / "docs" / "images" / "architecture.svg"
CONTRACTS = (user_pb2, downlink_pb2, cloud_pb2)

# Purpose of each service. A new service needs an entry.
DOES = {
    "gateway": "checks, admits, answers",
    "user": "equalises, decodes, renders",
    "channel": "fades, adds noise, tells the CSI",
    "edge": "draws latents, encodes them",
    "cloud": "draws images, keeps knowledge",
    "distiller": "makes knowledge updates",
}
REDIS_KEEPS = ("caches", "reports", "jobs", "mirror of", "the knowledge")

BOX_X, BOX_WIDTH, BOX_HEIGHT = 232, 264, 56
REDIS_X, REDIS_WIDTH = 586, 128
WIDTH, LINE, MARGIN = 730, 17, 16
STYLE = """
svg { --back: #ffffff; --box: #eef1fb; --line: #33415c; --text: #1b2233; --store: #f6eddc }
@media (prefers-color-scheme: dark) {
  svg { --back: #1b1e27; --box: #2b3350; --line: #a9b6d8; --text: #eceff8; --store: #47391f }
}
.back { fill: var(--back) }
.box { fill: var(--box); stroke: var(--line) }
.store { fill: var(--store); stroke: var(--line) }
.call { fill: none; stroke: var(--line); stroke-width: 1.6; marker-end: url(#head) }
.uses { fill: none; stroke: var(--line); stroke-dasharray: 3 4 }
#head path { fill: var(--line) }
text { fill: var(--text); font: 14px system-ui, sans-serif }
.name { font-weight: 600; font-size: 15px }
.rpc { font: 12.5px ui-monospace, monospace }
"""

HEAD = """<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"
orient="auto"><path d="M0 1L10 5L0 9z"/></marker></defs>"""


@dataclass
class Service:
    """One service of docker-compose.yml.

    Attributes:
        port: port for callers or the browser; 0 if there are none.
        calls: by the name of the service that is called, the RPCs.
        redis: whether it uses Redis.
        volumes: names of the volumes that it keeps things on.
    """

    name: str
    port: int = 0
    calls: dict[str, list[str]] = field(default_factory=dict)
    redis: bool = False
    volumes: list[str] = field(default_factory=list)


def rpcs(contract: str) -> list[str]:
    """The RPCs of a gRPC service, "Cloud" for example, in the order of its contract."""
    described = next(
        module.DESCRIPTOR.services_by_name[contract]
        for module in CONTRACTS
        if contract in module.DESCRIPTOR.services_by_name
    )
    return [method.name for method in described.methods]


def streams(rpc: str) -> bool:
    """Whether the RPC of that name returns a stream."""
    services = [each for module in CONTRACTS for each in module.DESCRIPTOR.services_by_name.values()]
    return any(m.server_streaming for service in services for m in service.methods if m.name == rpc)


def modules(start: str) -> dict[str, ast.Module]:
    """The module ``start`` and all modules of services/ that it imports, however indirectly; no stubs."""
    found: dict[str, ast.Module] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        ours = name.startswith("services.") and not name.startswith("services.proto")
        if name in found or not ours or not path.exists():
            continue
        found[name] = tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return found


def read(compose: Mapping[str, Any]) -> list[Service]:
    """The project's own services in the order of the chain; services without callers last.

    Raises:
        ValueError: a service that ``DOES`` does not describe.
    """
    services: dict[str, Service] = {}
    addresses: dict[str, dict[str, str]] = {}
    for name, entry in compose["services"].items():
        (command, *_) = entry.get("command", [""])
        if not command.startswith("services."):
            continue
        if name not in DOES:
            raise ValueError(f"say in DOES what the service {name} does")
        settings = entry["environment"]
        addresses[name] = {
            key.removeprefix("DEKAG_").removesuffix("_ADDRESS").title(): value
            for key, value in settings.items()
            if key.endswith("_ADDRESS")
        }
        start = f"{command}.__main__" if (ROOT / command.replace(".", "/")).is_dir() else command
        own = modules(start)
        used = {
            node.attr for tree in own.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)
        }
        services[name] = service = Service(
            name,
            redis=any(_imports_redis(tree) for tree in own.values()),
            # a folder of the machine, such as that of the models, is nothing that a service keeps things on
            volumes=[each.partition(":")[0] for each in entry.get("volumes", ()) if each[0].isalnum()],
        )
        for published in entry.get("ports", ()):
            service.port = int(published.rpartition(":")[2])
        for contract, address in addresses[name].items():
            service.calls[address.partition(":")[0]] = [rpc for rpc in rpcs(contract) if rpc in used]
    for called in addresses.values():
        for address in called.values():
            peer, _, port = address.partition(":")
            services[peer].port = int(port)
    depth = {name: _depth(name, services) for name in services}
    return sorted(services.values(), key=lambda each: (not (each.calls or each.port), -depth[each.name]))


def _imports_redis(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == "redis.asyncio" for node in ast.walk(tree))


def _depth(name: str, services: Mapping[str, Service]) -> int:
    """Calls that may follow one another from this service on."""
    return max((1 + _depth(peer, services) for peer in services[name].calls), default=0)


def draw(services: Sequence[Service]) -> str:
    """The drawing as SVG."""
    tops, volumes, y = _rows(services)
    height = y + MARGIN
    chain = [each.name for each in services if each.name in tops]
    parts = [
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="8"/>',
        *_box("box", MARGIN, "browser, curl, clients"),
        *_arrow(MARGIN + BOX_HEIGHT, tops[chain[0]], ["REST"]),
    ]
    redis_top, redis_bottom = (
        tops[chain[0]],
        max(tops[each.name] for each in services if each.redis) + BOX_HEIGHT,
    )
    parts.append(
        f'<rect class="store" x="{REDIS_X}" y="{redis_top}" width="{REDIS_WIDTH}" '
        f'height="{redis_bottom - redis_top}" rx="6"/>'
    )
    middle = (redis_top + redis_bottom) // 2 - LINE * len(REDIS_KEEPS) // 2
    for number, words in enumerate(("Redis", *REDIS_KEEPS)):
        kind = "" if number else "name"
        parts.append(_text(REDIS_X + REDIS_WIDTH // 2, middle + number * LINE, words, kind, "middle"))
    for each in services:
        top = tops[each.name]
        port = f" :{each.port}" if each.port else ""
        parts += _box("box", top, f"{each.name}{port}", DOES[each.name])
        if each.redis:
            right, centre = BOX_X + BOX_WIDTH, top + BOX_HEIGHT // 2
            parts.append(f'<path class="uses" d="M{right} {centre}H{REDIS_X}"/>')
        for peer, names in each.calls.items():
            shown = [f"{rpc} (stream)" if streams(rpc) else rpc for rpc in names]
            if chain.index(peer) == chain.index(each.name) + 1:
                parts += _arrow(top + BOX_HEIGHT, tops[peer], shown)
            else:
                parts += _detour(top + BOX_HEIGHT // 2, tops[peer] + BOX_HEIGHT // 2, shown)
        for volume in each.volumes:
            ends = sorted((top, volumes[volume]))
            parts.append(
                f'<path class="uses" d="M{BOX_X + BOX_WIDTH // 2} {ends[0] + BOX_HEIGHT}V{ends[1]}"/>'
            )
    for volume, top in volumes.items():
        parts += _box("store", top, f"volume {volume}", "the durable copy, and jobs' work")
    said = "; ".join(
        f"{each.name} calls {peer}: {', '.join(names)}"
        for each in services
        for peer, names in each.calls.items()
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>The services and who calls whom</title>\n<desc>{escape(said)}.</desc>",
            f"<style>{STYLE}</style>",
            HEAD,
            *parts,
            "</svg>\n",
        ]
    )


def _rows(services: Sequence[Service]) -> tuple[dict[str, int], dict[str, int], int]:
    """Where each service's box begins, and each volume's, and where the last one ends, from above."""
    tops: dict[str, int] = {}
    volumes: dict[str, int] = {}
    y = MARGIN + BOX_HEIGHT + _gap(1)
    for number, each in enumerate(services):
        tops[each.name] = y
        following = services[number + 1].name if number + 1 < len(services) else None
        y += BOX_HEIGHT
        for volume in each.volumes:
            if volume not in volumes:
                volumes[volume] = y + _gap(0)
                y = volumes[volume] + BOX_HEIGHT
        if following is not None:
            y += _gap(len(each.calls.get(following, ())))
    return tops, volumes, y


def _gap(lines: int) -> int:
    return 28 + lines * LINE


def _text(x: int, y: int, words: str, kind: str = "", anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{kind} text-anchor="{anchor}">{escape(words)}</text>'


def _box(kind: str, top: int, name: str, words: str = "") -> Iterator[str]:
    yield f'<rect class="{kind}" x="{BOX_X}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
    centre = BOX_X + BOX_WIDTH // 2
    yield _text(centre, top + (23 if words else 33), name, "name", "middle")
    if words:
        yield _text(centre, top + 43, words, "", "middle")


def _arrow(start: int, end: int, names: Sequence[str]) -> Iterator[str]:
    x = BOX_X + 40
    yield f'<path class="call" d="M{x} {start}V{end}"/>'
    for number, name in enumerate(names):
        yield _text(x + 14, start + 14 + LINE // 2 + number * LINE, name, "rpc")


def _detour(start: int, end: int, names: Sequence[str]) -> Iterator[str]:
    """A call past the services between, on the left."""
    x = BOX_X - 20
    yield f'<path class="call" d="M{BOX_X} {start}H{x}V{end}H{BOX_X}"/>'
    first = (start + end - LINE * len(names)) // 2 + LINE // 2
    for number, name in enumerate(names):
        yield _text(x - 10, first + number * LINE, name, "rpc", "end")


def main() -> int:
    """Write the drawing, or with ``--check`` report whether it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report whether the drawing is out of date")
    check = parser.parse_args().check
    picture = draw(read(read_yaml(COMPOSE)))
    if not check:
        PICTURE.write_text(picture)
    elif not PICTURE.exists() or PICTURE.read_text() != picture:
        sys.stderr.write(f"{PICTURE.name} is out of date; run python scripts/draw_architecture.py\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
