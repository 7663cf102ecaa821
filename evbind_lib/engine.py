"""Papermill engine ``evbind``: runs a notebook as papermill does, and passes its progress on to who waits for it.

Imports nothing of the library, since papermill loads it for any notebook; `runner` uses it.
"""

from __future__ import annotations

import sys
from typing import Any

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.log import logger
from papermill.utils import merge_kwargs, remove_args

# Outputs of this type carry one line of progress as text/plain.
PROGRESS = "application/vnd.evbind.progress+json"


class ProgressClient(PapermillNotebookClient):
    """Notebook client that writes progress to standard error: every change to a terminal, finished steps to a file."""

    steps_told: tuple[int, int] | None = None

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Handle one message of the kernel."""
        data = msg["content"].get("data", {})
        if msg["msg_type"] in {"display_data", "update_display_data"} and PROGRESS in data:
            steps = (data[PROGRESS]["done"], data[PROGRESS]["total"])
            if sys.stderr.isatty() or steps != self.steps_told:
                write_progress(data["text/plain"])
            self.steps_told = steps
        return super().process_message(msg, cell, cell_index)


class EvbindEngine(NBClientEngine):
    """Papermill's own engine with `ProgressClient` in place of its client."""

    @classmethod
    def execute_managed_notebook(  # noqa: D102 - papermill's own docstring holds
        cls,
        nb_man: Any,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **kwargs: Any,
    ) -> Any:
        options = merge_kwargs(
            remove_args(["input_path", "timeout", "startup_timeout"], **kwargs),
            timeout=execution_timeout or kwargs.get("timeout"),
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
            log=logger,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            # The kernel would warn on the terminal that its sockets on this machine are not encrypted.
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
        return ProgressClient(nb_man, **options).execute()


def write_progress(line: str) -> None:
    """Write a line of progress: over the last one on a terminal, below it in a file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{line}")
    else:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
