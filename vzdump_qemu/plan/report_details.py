"""What else is known of each VM's run, folded away on the report page; pure.

Owns the list of phases, disks and paths of one run. Nothing here is needed to know how the job
went; all of it is asked for once something did not go well.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.plan.batch_record import DiskRecord, RunRecord
from vzdump_qemu.plan.report_table import state_class, state_icon
from vzdump_qemu.plan.report_text import (
    LocalTime,
    clock,
    esc,
    freeze_length,
    length,
    rate,
    size,
    vm_label,
)
from vzdump_qemu.plan.report_timeline import phase_words

# Shorter phases would be told as none at all.
_LENGTH_S_MIN = 0.0005


def render_details(runs: Sequence[RunRecord], local_time: LocalTime) -> str:
    """The section; empty if no run began."""
    begun = [run for run in runs if run.phases]
    if not begun:
        return ""
    items = "\n".join(_render_run(run, local_time) for run in begun)
    return (
        '<section aria-labelledby="h-details">\n'
        '<div class="head"><h2 id="h-details">Details</h2></div>\n'
        f'<div class="details">\n{items}\n</div>\n</section>\n'
    )


def _render_run(run: RunRecord, local_time: LocalTime) -> str:
    facts = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in _facts(run) if value)
    phases = "".join(
        f'<tr><td>{phase_words(phase.phase)}</td><td class="num">'
        f'{clock(local_time(phase.began_wall_s))}</td><td class="num">'
        f"{length(phase.length_s)}</td></tr>"
        for phase in run.phases
        if phase.length_s >= _LENGTH_S_MIN
    )
    return (
        f'<details><summary><span class="state {state_class(run.state)}">'
        f"{state_icon(run.state)}</span>{vm_label(run)}</summary>"
        f'<div class="inside" id="vm-{run.vmid}"><table class="phases"><thead><tr>'
        '<th scope="col">Phase</th>'
        '<th scope="col" class="num">from</th><th scope="col" class="num">for</th></tr></thead>'
        f"<tbody>{phases}</tbody></table><dl>{facts}</dl></div></details>"
    )


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    freeze, transfer = run.freeze, run.transfer
    facts = [("Data path", esc(_data_path_text(run)))]
    if run.was_running is not None:
        facts.append(("Guest", "was running" if run.was_running else "was off"))
    if run.downtime_s is not None:
        facts.append(("Downtime", length(run.downtime_s)))
    if freeze is not None and freeze.window_s is not None and freeze.own_s is not None:
        window = f"{freeze_length(freeze.window_s)}, {freeze_length(freeze.own_s)} of it ours"
        facts.append(("Freeze window", window))
    if freeze is not None and freeze.failure:
        facts.append(("Freeze", esc(freeze.failure)))
    elif run.freeze_skip is not None:
        facts.append(("No freeze", esc(run.freeze_skip.value)))
    if transfer is not None:
        facts.append(
            ("Looked at", f"{size(transfer.target_bytes)} of {size(transfer.total_bytes)}")
        )
        if transfer.reused_bytes:
            facts.append(("Reused", size(transfer.reused_bytes)))
        facts.append(("Write rate", rate(transfer.written_bytes_per_s)))
    if run.sent_bytes is not None:
        facts.append(("Sent", size(run.sent_bytes)))
    if run.proved_bytes is not None:
        facts.append(("Proved", f"{size(run.proved_bytes)} read back"))
    if run.is_encrypted:
        facts.append(("Encryption", "on"))
    facts += [("Disks", "<br>".join(_disk_text(disk) for disk in run.disks))]
    if run.removed_names:
        facts.append(("Removed", "<br>".join(_code(name) for name in run.removed_names)))
    return [*facts, ("Log", _code(run.log_path)), ("Log beside it", _code(run.side_log_path))]


def _code(text: str) -> str:
    return f"<code>{esc(text)}</code>" if text else ""


def _data_path_text(run: RunRecord) -> str:
    if not run.data_path or not run.data_path_reason:
        return run.data_path
    return f"{run.data_path} ({run.data_path_reason})"


def _disk_text(disk: DiskRecord) -> str:
    text = _code(f"{disk.key} {disk.volid} {disk.size_text}".rstrip())
    if disk.excluded_reason:
        text += f' <span class="none">left out: {esc(disk.excluded_reason)}</span>'
    return text
