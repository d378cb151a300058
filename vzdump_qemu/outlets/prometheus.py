"""A text file of figures for the ``textfile`` collector of Prometheus' node exporter.

Owns the file: what an earlier job wrote of other VMs stays in it. Which figures there are is
`plan.measurements`'s. Imported only where a file is named: its library is an optional one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.outlet_ports import Measurement
from vzdump_qemu.stores.system import run_blocking

_OWNER_LABELS = ("vmid", "job_id")
_FILE_MODE = 0o644
_FILE_BYTES_MAX = 16 * 1024 * 1024


class PrometheusFile:
    """`MeasurementOutlet` in one file. Args: path: its name must end in ``.prom``."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def write(self, measurements: Sequence[Measurement], *, lasting: Collection[str]) -> None:
        """As the port says; a reader sees the old file or the new one."""
        try:
            await run_blocking(lambda: self._write(measurements, frozenset(lasting)))
        except OSError as error:
            reason = error.strerror or error
            raise BackupError(f"unable to write '{self._path}' - {reason}") from error

    def _write(self, measurements: Sequence[Measurement], lasting: frozenset[str]) -> None:
        directory_fd = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Jobs of several VMs known by their sockets may end at once.
            fcntl.flock(directory_fd, fcntl.LOCK_EX)
            kept = _without(self._read(), measurements, lasting)
            registry = CollectorRegistry()
            registry.register(_Figures([*kept, *measurements]))
            write_to_textfile(self._path, registry)
            # The exporter runs as somebody else, whatever our umask is.
            os.chmod(self._path, _FILE_MODE)
        finally:
            os.close(directory_fd)

    def _read(self) -> list[Measurement]:
        try:
            with open(self._path, encoding="utf-8") as file:
                text = file.read(_FILE_BYTES_MAX)
            families = list(text_string_to_metric_families(text))
        except (FileNotFoundError, ValueError):
            # What cannot be read is of no use to the exporter either.
            return []
        return [
            Measurement(
                name=sample.name,
                text=family.documentation,
                value=sample.value,
                labels=dict(sample.labels),
            )
            for family in families
            for sample in family.samples
        ]


def check_metrics_path(path: str) -> None:
    """Show before a job that its figures can be kept there.

    Raises:
        ConfigError: the name or the directory is no good.
    """
    if not path.endswith(".prom"):
        raise ConfigError(
            f"option 'metrics': '{path}' does not end in '.prom'",
            hint="the node exporter reads no other files",
        )
    directory = os.path.dirname(path) or "."
    if not (os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)):
        raise ConfigError(f"option 'metrics': '{directory}' is no directory to write to")


def _well_formed(text: str) -> str:
    """Names of VMs may hold bytes that are no text."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _owner(measurement: Measurement) -> tuple[str, str] | None:
    """The VM or job that a figure is of; None for one that we did not write."""
    for label in _OWNER_LABELS:
        if label in measurement.labels:
            return label, measurement.labels[label]
    return None


def _without(
    earlier: Iterable[Measurement], new: Sequence[Measurement], lasting: frozenset[str]
) -> list[Measurement]:
    """Those that stay."""
    owners = {_owner(measurement) for measurement in new}
    given = {(_owner(measurement), measurement.name) for measurement in new}
    kept = []
    for measurement in earlier:
        owner = _owner(measurement)
        is_lasting = measurement.name in lasting and (owner, measurement.name) not in given
        if owner is not None and (owner not in owners or is_lasting):
            kept.append(measurement)
    return kept


class _Figures(Collector):
    """A collector of a registry that shows these figures and no others."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self._measurements = sorted(
            measurements, key=lambda one: (one.name, sorted(one.labels.items()))
        )

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for one in self._measurements:
            family = families.setdefault(one.name, GaugeMetricFamily(one.name, one.text))
            labels = {label: _well_formed(value) for label, value in one.labels.items()}
            family.add_sample(one.name, labels, one.value)
        yield from families.values()
