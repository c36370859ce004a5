"""A model hub on this machine: as much of its HTTP interface as downloads need."""

from __future__ import annotations

import hashlib
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


@contextmanager
def running_hub(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve each name's folder; yields the address and the list of files that were downloaded."""
    taken: list[str] = []

    def files(folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    async def info(request: Request) -> Response:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        if name not in models or request.path_params.get("revision", "main") not in ("main", COMMIT):
            code = "RepoNotFound" if name not in models else "RevisionNotFound"
            return Response(status_code=404, headers={"X-Error-Code": code})
        named = [{"rfilename": str(path.relative_to(models[name]))} for path in files(models[name])]
        return JSONResponse({"id": name, "sha": COMMIT, "siblings": named})

    async def tree(request: Request) -> Response:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
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
        taken.append(f"{name}/{request.path_params['file']}")
        return FileResponse(path, headers=headers)

    model = "/api/models/{owner}/{name}"
    routes = [
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
