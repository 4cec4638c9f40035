"""What an ASGI server serves: the same tiles, awaited."""

import os
from typing import Any

import bufferpool as bp
from tests.integrations.servers.wsgi import pool, tiles

metrics = bp.prometheus.asgi_app(pool.name)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/metrics":
        await metrics(scope, receive, send)
        return
    page = await tiles.aget(int(scope["path"][1:]))
    body = f"{os.getpid()} {page[0]}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
