"""A headless Chromium that tests drive by its DevTools protocol: what a page looks like, says and asks for."""

import asyncio
import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

BINARIES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    return next((path for name in BINARIES if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Box:
    """Where an element is on the page, in CSS pixels, and how wide what is in it is."""

    left: float
    top: float
    right: float
    bottom: float
    scroll_width: float


@dataclass
class Seen:
    """What a page did while it was loaded."""

    title: str
    inner_width: int  # CSS pixels
    scroll_width: int
    background: str  # as CSS says it
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    screenshot: bytes = b""
    pdf: bytes = b""
    boxes: dict[str, Box] = field(default_factory=dict)  # by selector: the first element of each


def look(
    binary: str, page: Path, folder: Path, widths: Sequence[tuple[int, str]], selectors: Sequence[str] = ()
) -> dict[tuple[int, str], Seen]:
    """By width in CSS pixels and colour scheme (`light`, `dark`) what a page on this machine does."""
    command = [binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
    with (folder / "log").open("w") as log:
        browser = subprocess.Popen([*command, "about:blank"], stderr=log, stdout=log)
    try:
        return asyncio.run(_look(page, folder, widths, selectors))
    finally:
        browser.terminate()
        browser.wait(20)


async def _look(
    page: Path, folder: Path, widths: Sequence[tuple[int, str]], selectors: Sequence[str]
) -> dict[tuple[int, str], Seen]:
    async with asyncio.timeout(120):
        port = (await _when_written(folder / "DevToolsActivePort")).split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            [target] = [each for each in json.load(answer) if each["type"] == "page"]
        connection = await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=1 << 28)
        tab = Tab(connection)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        return {(width, scheme): await tab.visit(page, width, scheme, selectors) for width, scheme in widths}


async def _when_written(file: Path) -> str:
    while not file.exists() or not file.read_text():
        await asyncio.sleep(0.1)
    return file.read_text()


class Tab:
    """One page of the browser."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection
        self.number = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what happens meanwhile is kept as events."""
        self.number += 1
        await self.connection.write_message(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = await self._next()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    async def _next(self) -> dict[str, Any]:
        text = await self.connection.read_message()
        assert text is not None, "the browser closed the connection"
        return dict(json.loads(text))

    async def _until(self, method: str) -> None:
        while all(event.get("method") != method for event in self.events):
            self.events.append(await self._next())

    async def value(self, expression: str) -> Any:
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def visit(self, page: Path, width: int, scheme: str, selectors: Sequence[str] = ()) -> Seen:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        await self.call("Page.navigate", url=page.as_uri())
        await self._until("Page.loadEventFired")
        boxes = {each: Box(*await self.value(BOX % json.dumps(each))) for each in selectors}
        screenshot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        pdf = await self.call("Page.printToPDF", printBackground=True)
        return Seen(
            title=await self.value("document.title"),
            inner_width=await self.value("window.innerWidth"),
            scroll_width=await self.value("document.documentElement.scrollWidth"),
            background=await self.value("getComputedStyle(document.body).backgroundColor"),
            console=[_said(event) for event in self.events if event.get("method") in SAID],
            requests=[
                event["params"]["request"]["url"]
                for event in self.events
                if event.get("method") == "Network.requestWillBeSent"
            ],
            screenshot=base64.b64decode(screenshot["data"]),
            pdf=base64.b64decode(pdf["data"]),
            boxes=boxes,
        )


BOX = """(() => {
    const found = document.querySelector(%s), box = found.getBoundingClientRect();
    return [box.left, box.top + scrollY, box.right, box.bottom + scrollY, found.scrollWidth];
})()"""
SAID = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


def _said(event: dict[str, Any]) -> str:
    return json.dumps(event["params"])
