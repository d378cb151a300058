"""The file of ``--results``: made once a job ended, however it ended.

Owns that it is whole or not there, and that it can harm no job; what is in it is
`plan.job_results`'.
"""

from __future__ import annotations

import asyncio
import json
import os

from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.outlets.report_file import write_report_file
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.job_results import list_results
from vzdump_qemu.stores.system import run_blocking

_TIMEOUT_S = 60.0


def check_result_path(path: str) -> None:
    """Show before a job that the file can be written there. Raises ConfigError."""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        raise ConfigError(
            f"results: directory '{directory}' does not exist", hint="create it first"
        )
    if os.path.isdir(path):
        raise ConfigError(f"results: '{path}' is a directory", hint="name a file in it")


async def write_results(path: str, record: JobRecord) -> str:
    """Write the file; return what went wrong, as the text of a warning, else nothing."""
    full_path = os.path.abspath(path)
    text = json.dumps(list_results(record), indent=2, ensure_ascii=False) + "\n"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await run_blocking(lambda: write_report_file(full_path, text))
    except TimeoutError:
        return f"unable to write results '{path}' - got timeout"
    except BackupError as error:
        return str(error)
    return ""
