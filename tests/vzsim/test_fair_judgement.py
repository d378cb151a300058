"""What checkers once held against a tool that had done nothing wrong: each run is judged again."""

from __future__ import annotations

import pytest

from vzsim.explore import replay
from vzsim.token import Token


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (
            "going on failed once, and a guest that stands still does not keep the lock",
            "stop-running/20032329/query-named-block-nodes#1:error,cont#1:error",
        ),
        (
            "a deaf QEMU keeps the VM's lock for ten minutes and no longer",
            "cancel-hangs/20052818/kill-tool@agent.thaw#1",
        ),
        (
            "a guest that nobody can thaw stays frozen for as long as that lasts",
            "thaw-fails/20018771/guest-suspends@recovery.query-status#276,"
            "kill-tool@agent.connect#2",
        ),
        (
            "somebody pruned the new backup itself, once it was final",
            "pull-pbs/0/pbs.upload-backup-log#1:previous-pruned",
        ),
        (
            "the reason why an archive stays is told in the log that the error speaks of",
            "retention/0/store.remove_file#1:error",
        ),
        (
            "a guest whose QEMU died waits for no script",
            "hook-hangs-halted/0/backup#1:qemu-dies-midway",
        ),
        (
            "a tool that was killed meanwhile holds nothing that it got afterwards",
            "batch-parallel/70010413/vm109/machine.keep_alive#1:stall+700s,"
            "power-loss@vm110/files.write#2",
        ),
        (
            "a tool that was killed while a call was stalled does not make it afterwards",
            "batch-parallel-killed/80022647/vm107/store.open_intake#1:stall+4s,"
            "kill-tool-after@vm107/getfd#1",
        ),
        (
            "another client that waits for a QEMU which has died gives up",
            "other-client/80025785/cancel-tool-after@store.open_intake#1,"
            "power-loss@files.fsync-directory#1",
        ),
        (
            "two thaws that fail beside a guest that panicked take three tries of the undo",
            "thaw-fails-long/100008686/node.hold_global_lock#1:error-after,"
            "power-loss@files.fsync#1,guest-panics@backup#1",
        ),
        (
            "a migrated VM that somebody started by force here is ended again when all is healed",
            "postmigrate/200048087/force-start@recovery.journals.open#1,"
            "power-loss@node.set_vm_lock#1,kill-tool-after@journal.note#2",
        ),
        (
            "a descriptor on its way to QEMU is gone with the connection that was given up",
            "batch-storage-limit/200078257/vm103/getfd#1:stall+4s,cancel-tool@vm102/agent.thaw#1",
        ),
        (
            "another's freeze ends with the guest that an operator stopped and started again",
            "frozen-before/200117570/files.unlink#1:eio,stop-vm@agent.status#1,"
            "force-start@backup#1",
        ),
    ],
)
def test_run_with_nothing_to_blame_is_not_blamed(cause: str, text: str) -> None:
    assert [violation.render() for violation in replay(Token.parse(text)).violations] == [], cause
