"""Waits, as a member of their domain, for HTTP servers that are starting.

usage: python -m revati.deployment.await_servers URL ...
"""

from __future__ import annotations

import asyncio
import sys

from revati.deployment.http_servers import open_session, wait_until_healthy


async def _wait() -> None:
    async with open_session() as session:
        await asyncio.gather(*(wait_until_healthy(session, url) for url in sys.argv[1:]))


if __name__ == "__main__":
    asyncio.run(_wait())
