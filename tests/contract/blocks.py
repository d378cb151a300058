"""Nodes, bitmaps and the NBD server as several behaviours arrange and look at them."""

from __future__ import annotations

from typing import Any

from tests.contract.subject import Client, Subject, file_of


def add_raw(client: Client, subject: Subject, name: str, **image: Any) -> str:
    """A raw node over a new image; returns the image's path."""
    path = subject.add_image(f"{name}.raw", **image)
    client.ask("blockdev-add", driver="raw", node_name=name, file=file_of(path))
    return path


def start_server(client: Client, subject: Subject) -> None:
    """The NBD server on a socket of its own."""
    path = subject.new_path("nbd.sock")
    address = {"type": "unix", "data": {"path": path}}
    assert client.ask("nbd-server-start", addr=address) == {}


def told_node(client: Client, name: str) -> dict[str, Any]:
    """What is told of the one node with that name."""
    [found] = [
        node
        for node in client.ask("query-named-block-nodes", flat=True)
        if node["node-name"] == name
    ]
    entry: dict[str, Any] = found
    return entry


def told_bitmaps(client: Client, name: str = "disk0") -> dict[str, dict[str, Any]]:
    """What is told of a node's bitmaps, by their names and in the order told."""
    return {each.pop("name"): each for each in told_node(client, name).get("dirty-bitmaps", [])}
