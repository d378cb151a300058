"""The failure modes of a backup, and what decides that each is met well.

Owns the list and the table made from it (``docs/failure-modes.md``); which scenario is about which
row is said in the scenarios. Write the table anew with
``python -m vzsim.failure_modes > docs/failure-modes.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

from vzsim.scenario import load_scenarios

_HEAD = """# Failure modes

What can go wrong around the backup of a virtual machine, and what shows that it is met well: a
scenario of the simulator (`vzsim explore`, `vzsim replay`), in which it really happens and every
guarantee is checked; or a test, most often on real files, sockets and processes, where simulating
would prove little; or both. Rows with neither say why.

| # | what happens | decided by |
|---|---|---|
"""

TRIGGERS: Mapping[int, str] = MappingProxyType(
    {
        1: "nobody answers at the monitor: the VM is off, or just went",
        2: "another client holds the monitor",
        3: "messages arrive in pieces, or two at once",
        4: "an event comes between a command and its reply",
        5: "a reply comes after its time limit",
        6: "the monitor stands still for seconds or minutes",
        7: "the reply to the job's start is lost or names no job",
        8: "letting the guest go on takes longer than the limit",
        9: "QEMU is killed while the job runs",
        10: "the client before left in the middle of its negotiation",
        11: "QEMU does not have the backup command",
        12: "QEMU does not know an argument",
        13: "the process or socket of a VM is another one's by now",
        14: "a flood of events",
        15: "an agent is configured and does not run",
        16: "the agent is gone once it has read the freeze",
        17: "the freeze ends after its time limit",
        18: "the freeze fails after its hooks ran",
        19: "somebody else froze the guest before",
        20: "the thaw fails, once or always",
        21: "the guest thaws by itself",
        22: "the agent's channel holds answers to earlier questions",
        23: "the guest sleeps, or wakes up meanwhile",
        24: "the VM was paused before",
        25: "the tool is killed between freeze and thaw",
        26: "a killed backup left its job, or another's job runs",
        27: "another kind of job has a disk",
        28: "one disk of several cannot be started",
        29: "one action of a transaction is refused",
        30: "a transaction whose jobs end together has a bitmap action",
        31: "a device is missing or has no medium",
        32: "a disk is taken out while the backup is being prepared",
        33: "a disk is resized while the backup is being prepared",
        34: "sizes that are no multiple of a cluster",
        35: "an EFI disk that is smaller than its volume",
        36: "a crashed run left the TPM state attached",
        37: "a filter was inserted, the next step fails",
        38: "QEMU was started for the backup, the next step fails",
        39: "the target is full or broken, the job fails",
        40: "the target is full, the job stops and waits",
        41: "one disk of several fails",
        42: "one disk fails and takes the others along",
        43: "the target or the job stands still",
        44: "the target is slower than the guest",
        45: "saving old data fails and the guest's write with it",
        46: "saving old data fails and only the backup knows",
        47: "the limit for saving old data overflows",
        48: "the storage of the fleecing images is full",
        49: "discarding in fleecing images frees nothing",
        50: "the guest powers off while the job runs",
        51: "the guest resets or panics while the job runs",
        52: "somebody migrates the VM",
        53: "somebody starts the stopped VM that is being backed up",
        54: "somebody cancels the job",
        55: "our cancel comes when the job just ended",
        56: "QEMU's cancel does not come back",
        57: "a node is deleted while a job still uses it",
        58: "QEMU speaks of another job than ours",
        59: "a job ends in no known state, or without a reason",
        60: "figures of the job make no sense",
        61: "the compressor dies when QEMU has finished",
        62: "the compressor dies early, or is missing",
        63: "a copy of the pipe's end stays open in a child",
        64: "the pipe takes a few bytes at a time",
        65: "the power goes around the renaming",
        66: "the renaming fails",
        67: "an archive is cut anywhere",
        68: "bits of an archive flip",
        69: "clusters of an archive come twice, or of another archive",
        70: "more disks than fit into one step of the header",
        71: "the backup server is not reachable or not the one expected",
        72: "the key for the backup server is missing",
        73: "the connection to the backup server ends meanwhile",
        74: "the backup server takes long to finish",
        75: "the previous backup on the server cannot be built upon",
        76: "the server lost data that counts as known",
        77: "a bitmap is missing or not consistent",
        78: "a bitmap's name is taken",
        79: "an increment fails, its bitmap is kept",
        80: "an increment fails, its bitmap was cleared",
        81: "a disk was written outside of QEMU",
        82: "the folder of an increment's archives is an older one",
        83: "the clock jumps, or a name is taken",
        84: "two runs on one VM or node, or a lock without an owner",
        85: "the tool is killed at any step, its recovery too",
        86: "a hook script hangs, fails or talks without end",
        87: "pruning meets unproved, protected or needed archives",
        88: "the target of a restore is too small, or the restore is interrupted",
        89: "a request waits in the channel of an agent that is not there yet",
        90: "a fleecing image is full under a job that only saves old data",
        91: "the job is refused, and QEMU calls it active all the same",
        92: "the guest powers off and QEMU ends with it",
        93: "a VM is started while its image is read from outside",
        94: "a compressed archive is damaged where its compressor does not notice",
        95: "the target stands still and the operator gives up",
        96: "a device list that makes QEMU crash",
        97: "a cancel after a good end would turn it into a failure",
        98: "all events say success, the job's state says otherwise",
    }
)

_DAMAGED = (
    "tests/stores/test_archive_golden.py"
    "::test_damaged_archive_gets_a_verdict_as_strict_as_the_real_tools"
)
_AT_SERVER = "integration/backup_server/test_distrust.py"
_CHANGES = "tests/engine/test_change_tracking.py"
_HOOKS = "tests/engine/test_hooks.py"
_KEEPING = "tests/engine/test_keeping.py"
TESTS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        3: (
            "tests/qemu/test_qmp_connection.py"
            "::test_row_10_1_8_connect_greeting_in_pieces_and_stray_replies_are_survived",
        ),
        10: (
            "tests/qemu/test_qmp_connection.py"
            "::test_connect_negotiated_by_vanished_client_is_taken_over",
        ),
        13: ("tests/node/test_processes.py::test_find_qemu_refuses_other_processes",),
        67: (
            "tests/formats/vma/test_reader.py::test_reader_cut_stream_is_named_by_its_place",
            _DAMAGED,
        ),
        68: (_DAMAGED,),
        69: (_DAMAGED,),
        77: (
            f"{_AT_SERVER}::test_77_qemu_started_anew_has_no_bitmap",
            f"{_CHANGES}::test_missing_bitmap_ends_in_a_full_read",
            f"{_CHANGES}::test_bitmap_that_cannot_be_believed_ends_in_a_full_read",
        ),
        78: (
            f"{_AT_SERVER}::test_78_bitmap_under_our_name_of_another_kind_is_not_believed",
            f"{_CHANGES}::test_name_taken_by_another_bitmap_is_neither_believed_nor_removed",
            f"{_CHANGES}::test_name_left_by_ourselves_is_taken_over_anew",
        ),
        79: (
            f"{_CHANGES}::test_failed_increment_keeps_the_changes_for_the_next",
            f"{_AT_SERVER}::test_79_80_failed_run_loses_no_change",
        ),
        80: (
            f"{_CHANGES}"
            "::test_increment_killed_at_any_command_loses_no_change_and_leaves_no_bitmap",
            f"{_CHANGES}::test_refusal_at_any_step_of_an_increment_loses_no_change",
        ),
        81: (
            f"{_CHANGES}::test_disk_written_while_the_vm_was_off_is_read_whole",
            f"{_CHANGES}::test_disk_that_was_resized_is_read_whole",
            f"{_CHANGES}::test_exchanged_disk_is_read_whole",
        ),
        82: (
            f"{_AT_SERVER}::test_82_server_with_an_older_state_ends_in_a_full_read",
            f"{_CHANGES}::test_older_base_at_the_target_ends_in_a_full_read",
            f"{_CHANGES}::test_target_that_lost_its_backups_is_given_everything",
        ),
        86: (
            f"{_HOOKS}::test_hanging_script_is_ended_at_its_limit",
            f"{_HOOKS}::test_guest_that_is_down_does_not_wait_long_for_a_hanging_script",
            f"{_HOOKS}::test_row_10_1_1_failure_in_a_phase_of_the_run_fails_the_vm",
            f"{_HOOKS}::test_row_10_1_1_failure_in_a_phase_that_comes_after_is_a_warning",
            f"{_HOOKS}::test_script_without_end_of_words_fills_no_log",
        ),
        87: (
            f"{_KEEPING}::test_failed_run_removes_nothing",
            f"{_KEEPING}::test_archive_protected_meanwhile_stays",
            f"{_KEEPING}::test_protected_renamed_and_foreign_archives_stay",
            f"{_KEEPING}::test_archive_of_a_clock_that_was_set_back_is_not_pruned_itself",
            f"{_KEEPING}::test_archive_that_cannot_be_removed_fails_the_vm_and_keeps_no_other",
        ),
        94: (
            _DAMAGED,
            "tests/stores/test_archive_reading.py::test_source_zstd_cut_anywhere_is_refused",
        ),
    }
)
"""Rows that are decided, or decided further, by tests: most on real files, sockets, processes."""

REMARKS: Mapping[int, str] = MappingProxyType(
    {
        13: "the owner of a VM's pid file is proved by its command line",
        80: "the tracked bitmap is never cleared: a new one begins beside it",
        86: "one call may take an hour, or what `--script-timeout` says",
        87: "the archive just proved stays whatever the rule says",
    }
)

_NO_TRANSACTION = "no job is started by a transaction with a bitmap"
REASONS: Mapping[int, str] = MappingProxyType(
    {
        29: _NO_TRANSACTION,
        30: _NO_TRANSACTION,
        40: "no job is started with a policy that stops: each fails at once",
        47: "the limit that is set stays below the one that overflows",
        49: "the room that a storage gives back is not simulated",
        88: "restoring, not backing up",
    }
)
"""Rows that are not about a backup as it is made here, and why."""


def scenarios_by_row() -> dict[int, list[str]]:
    """Names of the scenarios that are about each row."""
    found: dict[int, list[str]] = {}
    for scenario in load_scenarios().values():
        for number in scenario.covers:
            found.setdefault(number, []).append(scenario.name)
    return found


def render_failure_modes() -> str:
    """The whole document, in Markdown."""
    covering = scenarios_by_row()
    rows = [
        f"| {number} | {trigger} | {_decided_by(number, covering)} |\n"
        for number, trigger in TRIGGERS.items()
    ]
    return _HEAD + "".join(rows)


def _decided_by(number: int, covering: Mapping[int, list[str]]) -> str:
    if number in REASONS:
        return f"— {REASONS[number]}"
    names = (*covering.get(number, ()), *TESTS.get(number, ()))
    text = ", ".join(f"`{name}`" for name in names)
    return f"{text} ({REMARKS[number]})" if number in REMARKS else text


if __name__ == "__main__":
    click.echo(render_failure_modes(), nl=False)
