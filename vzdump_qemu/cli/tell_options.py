"""Who is told how a job ended, as the options say; and what is needed for it.

Owns the reading of these options, and that what cannot work is refused before the job begins.
Source: host behaviour, sections 1.14, 2.1 and 2.2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.outlet_ports import MeasurementOutlet, MessageOutlet
from vzdump_qemu.plan.addressing import split_mailto
from vzdump_qemu.plan.notification import MailPolicy, NotificationMode


@dataclass(frozen=True, slots=True, kw_only=True)
class TellOptions:
    """What the options say.

    Attributes:
        recipients: words of ``mailto``: addresses and names of users.
        targets: each a URL of ``notify``, ready to be told.
        measurements: keeps figures; None if nobody asked for them.
    """

    mode: NotificationMode = NotificationMode.AUTO
    policy: MailPolicy = MailPolicy.ALWAYS
    recipients: tuple[str, ...] = ()
    job_id: str = ""
    targets: tuple[MessageOutlet, ...] = ()
    measurements: MeasurementOutlet | None = None


def read_tell_options(merged: Mapping[str, Any]) -> TellOptions:
    """The options of one job, command line and file together.

    Raises:
        ConfigError: a target is not understood, a file cannot be written, a library is missing.
    """
    mailto = merged.get("mailto", ())
    return TellOptions(
        mode=NotificationMode(merged.get("notification-mode", "auto")),
        policy=MailPolicy(merged.get("mailnotification", "always")),
        recipients=split_mailto((mailto,) if isinstance(mailto, str) else mailto),
        job_id=merged.get("job-id", ""),
        targets=_open_targets(_read_urls(merged.get("notify", ()))),
        measurements=_open_measurements(merged.get("metrics", "")),
    )


def _read_urls(words: tuple[str, ...]) -> tuple[str, ...]:
    """URLs as given, and those of files, which a list of processes does not show."""
    urls: list[str] = []
    for word in words:
        if not word.startswith("@"):
            urls.append(word)
            continue
        path = word[1:]
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file]
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"option 'notify': unable to read '{path}' - {reason}") from error
        urls += [line for line in lines if line and not line.startswith("#")]
    return tuple(urls)


def _open_targets(urls: tuple[str, ...]) -> tuple[MessageOutlet, ...]:
    if not urls:
        return ()
    try:
        from vzdump_qemu.outlets.apprise_targets import open_apprise_targets
    except ImportError as error:
        raise _missing("notify", "apprise", "apprise") from error
    return open_apprise_targets(urls)


def _open_measurements(path: str) -> MeasurementOutlet | None:
    if not path:
        return None
    try:
        from vzdump_qemu.outlets.prometheus import PrometheusFile, check_metrics_path
    except ImportError as error:
        raise _missing("metrics", "prometheus-client", "python3-prometheus-client") from error
    path = os.path.abspath(path)
    check_metrics_path(path)
    return PrometheusFile(path)


def _missing(option: str, package: str, debian_package: str) -> ConfigError:
    return ConfigError(
        f"option '{option}' needs the Python package '{package}'",
        hint=f"pip install 'vzdump-qemu[notify]', or apt install {debian_package}",
    )
