"""A model hub on this machine: as much of its HTTP interface as downloads and uploads need."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tests.processes import free_port

COMMIT = "c" * 40
TOKEN = "hf_" + "t" * 20


@contextmanager
def running_hub(models: dict[str, Path], *, breaks: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Serve each name's folder; yields the address and the list of files that were downloaded.

    Uploaded models, which need the token, become new folders and are added to `models`. The connection of the
    first `breaks` downloads of weights ends after half of a file; a list entry says where one goes on.
    """
    taken: list[str] = []
    broken = 0

    def files(folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def absent(request: Request, name: str) -> Response | None:
        if name in models and request.path_params.get("revision", "main") in ("main", COMMIT):
            return None
        code = "RepoNotFound" if name not in models else "RevisionNotFound"
        return Response(status_code=404, headers={"X-Error-Code": code})

    async def info(request: Request) -> Response:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        if (refused := absent(request, name)) is not None:
            return refused
        named = [{"rfilename": str(path.relative_to(models[name]))} for path in files(models[name])]
        return JSONResponse({"id": name, "sha": COMMIT, "siblings": named})

    async def tree(request: Request) -> Response:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        if (refused := absent(request, name)) is not None:
            return refused
        listed = [
            {
                "type": "file",
                "path": str(path.relative_to(models[name])),
                "size": path.stat().st_size,
                "oid": "0",
            }
            for path in files(models[name])
        ]
        return JSONResponse(listed)

    async def resolve(request: Request) -> Response:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        path = models.get(name, Path("nowhere")) / request.path_params["file"]
        if not path.is_file():
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        headers: dict[str, Any] = {"ETag": etag, "X-Repo-Commit": COMMIT}
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(path.stat().st_size)})
        nonlocal broken
        start = request.headers.get("range", "").removeprefix("bytes=").partition("-")[0]
        taken.append(f"{name}/{request.path_params['file']}" + (f" from byte {start}" if start else ""))
        if path.suffix == ".safetensors" and not start and broken < breaks:
            broken += 1
            size = path.stat().st_size
            return Response(path.read_bytes()[: size // 2], headers={**headers, "Content-Length": str(size)})
        return FileResponse(path, headers=headers)

    async def create(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(status_code=401)
        asked = await request.json()
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        models.setdefault(name, Path(tempfile.mkdtemp(prefix="hub-")))
        return JSONResponse({"url": f"{request.base_url}{name}", "name": name})

    async def validate(request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(request: Request) -> Response:
        asked = [each["path"] for each in (await request.json())["files"]]
        return JSONResponse(
            {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]}
        )

    async def commit(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(status_code=401)
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                path = models[name] / entry["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(entry["value"]["content"]))
        return JSONResponse({"commitUrl": f"{request.base_url}{name}/commit/{COMMIT}", "commitOid": COMMIT})

    model = "/api/models/{owner}/{name}"
    routes = [
        Route("/api/repos/create", create, methods=["POST"]),
        Route("/api/validate-yaml", validate, methods=["POST"]),
        Route(f"{model}/preupload/{{revision}}", preupload, methods=["POST"]),
        Route(f"{model}/commit/{{revision}}", commit, methods=["POST"]),
        Route(model, info),
        Route(f"{model}/revision/{{revision}}", info),
        Route(f"{model}/tree/{{revision}}", tree),
        Route("/{owner}/{name}/resolve/{revision}/{file:path}", resolve, methods=["GET", "HEAD"]),
    ]
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", taken
    finally:
        server.should_exit = True
        thread.join()
