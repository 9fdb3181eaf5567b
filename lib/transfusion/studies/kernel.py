"""The process of a notebook: it ends with this one, and nobody else can speak to it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from transfusion import machine

LONGEST = (
    60  # bytes of a temporary folder: the path of a socket in it has at most 107, on macOS 103
)


class Kernel(AsyncKernelManager):
    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        more = extra_arguments or []
        return machine.bound("ipykernel_launcher", "-f", self.connection_file, *more)


@contextlib.contextmanager
def alone() -> Iterator[dict[str, Any]]:
    """What to tell papermill, for as long as a notebook is executed: its kernel is spoken to
    through files that only this user can open, not through ports."""
    short = None if len(tempfile.gettempdir().encode()) <= LONGEST else "/tmp"
    with tempfile.TemporaryDirectory(prefix="transfusion-", dir=short) as place:
        sockets = {"transport": "ipc", "connection_file": f"{place}/kernel.json"}
        settings = {"kernel_manager_class": Kernel, "config": Config(KernelManager=sockets)}
        yield settings | {"shutdown_kernel": "immediate"}  # in the midst of a cell, too
