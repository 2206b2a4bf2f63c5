"""``python -m tests.doubles.openai_server PORT MS_PER_TOKEN``: an OpenAI-style server that says words.

It serves any number of requests at once, and finds a whole prompt that it had before in its "cache".
"""

import asyncio
import json
import sys

from aiohttp import web

PORT, MS_PER_TOKEN = int(sys.argv[1]), float(sys.argv[2])
served: list[dict[str, str]] = []


async def complete(request: web.Request) -> web.StreamResponse:
    content = await request.json()
    prompt = content["prompt"]
    if prompt == "refuse":
        return web.json_response({"error": "no"}, status=400)
    words = len(prompt.split()) - (prompt == "miscount me")
    cached = words if prompt in [one["prompt"] for one in served] else 0
    served.append({"prompt": prompt, "session": request.headers.get("x-session-id", "")})
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    tokens, done = content["max_tokens"], 0
    while done < tokens:
        await asyncio.sleep(MS_PER_TOKEN / 1e3)
        done += 2 if done == 1 and tokens > 2 else 1  # some come together
        usage = {"prompt_tokens": words, "completion_tokens": done}
        part = {"choices": [{"index": 0, "text": " word"}], "usage": usage}
        await answer.write(f"data: {json.dumps(part)}\n\n".encode())
    usage["prompt_tokens_details"] = {"cached_tokens": cached}
    last = {"choices": [], "usage": usage}
    await answer.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
    return answer


async def tell(request: web.Request) -> web.Response:
    return web.json_response(served)


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


async def health(request: web.Request) -> web.Response:
    return web.Response()


app = web.Application()
app.add_routes(
    [
        web.get("/health", health),
        web.get("/v1/models", models),
        web.get("/served", tell),
        web.post("/v1/completions", complete),
    ]
)
web.run_app(app, host="127.0.0.1", port=PORT, print=None, handle_signals=False)
