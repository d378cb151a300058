"""What must hold of a job over several VMs as a whole; each VM is judged by `vzsim.checkers`.

Every VM has one result; what happens to one costs no other its backup; the operator is told
exactly which failed; no more runs are under way than were allowed; nobody's file is left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from vzsim.batch.evidence import BatchEvidence
from vzsim.checkers import Violation
from vzsim.evidence import Ending
from vzsim.faults import Kind

# A line of the table: VM, name, state.
_ROW = re.compile(r"^([0-9]+) +(?:VM [0-9]+|\S+) +(ok|err|todo) ", re.MULTILINE)
# The empty one stands for all those of VMs.
_JOB_PHASES = ("job-init", "job-start", "", "job-end", "job-abort")
# An end by which a job has no time for all its VMs, or for a word.
_CUT = frozenset({Ending.KILLED, Ending.CANCELLED, Ending.HUNG, Ending.CRASHED})
# From the look at the clock to the first thing that is done with a VM.
_BEGIN_S = 0.1
_CLOCK_KINDS = frozenset(
    {Kind.CLOCK_BACK, Kind.CLOCK_FORWARD, Kind.SUMMER_BEGINS, Kind.SUMMER_ENDS}
)
_MUTE = frozenset({Ending.KILLED, Ending.HUNG, Ending.CRASHED})


def _check_results(batch: BatchEvidence) -> list[str]:
    """Every VM has exactly one result, unless the job itself failed: then it has one at most."""
    if batch.ending in _CUT:
        return []
    counts = Counter(batch.results)
    found = [f"vm{vmid} has {count} results" for vmid, count in counts.items() if count > 1]
    found += [f"vm{vmid} was not asked for" for vmid in counts if vmid not in batch.vmids]
    if not batch.error:
        found += [f"vm{vmid} has no result" for vmid in batch.vmids if vmid not in counts]
    return found


def _check_independence(batch: BatchEvidence) -> list[str]:
    """What happened to one VM costs no other its backup."""
    if batch.ending in _CUT:
        return []
    failed_vmids = batch.failed_vmids
    return [
        f"vm{vmid} failed although nothing happened to it: {evidence.error}"
        for vmid, evidence in batch.evidences.items()
        if vmid in failed_vmids
        and not evidence.triggered
        and str(vmid) not in batch.scenario.failing
    ]


def _check_summary(batch: BatchEvidence) -> list[str]:
    """The operator is told once which VMs failed, and that is what the results say."""
    summaries = batch.heard.summaries
    if batch.ending in _MUTE:
        return []
    if len(summaries) != 1:
        return [f"the end of the job is told {len(summaries)} times"]
    found = []
    told = tuple(sorted(summaries[0].failed_vmids))
    if batch.ending is not Ending.CANCELLED and told != batch.failed_vmids:
        found.append(f"{list(told)} are told to have failed, it was {list(batch.failed_vmids)}")
    bad = sorted(vmid for vmid, ends in batch.heard.ends.items() if not ends[-1])
    if batch.ending is Ending.CANCELLED and not set(told) <= set(bad):
        found.append(f"{list(told)} are told to have failed, their runs say so of {bad}")
    if bool(summaries[0].error) is not bool(batch.error):
        found.append(f"the job ends with '{batch.error}', told is '{summaries[0].error}'")
    return found


def _check_ends(batch: BatchEvidence) -> list[str]:
    """Each run's end is told once, and as the result says."""
    found = []
    for vmid, ends in batch.heard.ends.items():
        if len(ends) > 1:
            found.append(f"the end of vm{vmid} is told {len(ends)} times")
        is_good = batch.evidences[vmid].ending is Ending.OK
        if batch.ending not in _CUT and ends[-1] is not is_good:
            found.append(f"vm{vmid} is told to have ended {'well' if ends[-1] else 'badly'}")
    return found


def _check_notice(batch: BatchEvidence) -> list[str]:
    """One message, whose subject and table say what happened."""
    notices = batch.heard.notices
    if batch.ending in _MUTE:
        return []
    if len(notices) != 1:
        return [f"{len(notices)} messages were sent"]
    is_bad = batch.ending is not Ending.OK
    found = []
    if (": backup successful" in notices[0].subject) is is_bad or notices[0].failed is not is_bad:
        found.append(f"'{notices[0].subject}' of a job that ended {batch.ending.value}")
    if not batch.heard.ends:
        return found  # a job that had no VM's turn has no table either
    states = {int(row[1]): row[2] for row in _ROW.finditer(notices[0].text)}
    for vmid in batch.vmids:
        ends = batch.heard.ends.get(vmid)
        wanted = "todo" if ends is None else "ok" if ends[-1] else "err"
        if states.get(vmid) != wanted:
            found.append(f"the message says '{states.get(vmid, '')}' of vm{vmid}, not '{wanted}'")
    return found


def _check_crowd(batch: BatchEvidence) -> list[str]:
    """No more runs are under way at a time than were allowed."""
    count = batch.heard.most_at_once
    if count <= batch.parallel_max:
        return []
    return [f"{count} VMs were worked on at once, {batch.parallel_max} were allowed"]


def _check_deadline(batch: BatchEvidence) -> list[str]:
    """No VM is begun after the job's deadline, as long as the clock goes as it should."""
    deadline_s = batch.scenario.options.get("deadline_s")
    is_misled = any(fault.kind in _CLOCK_KINDS for fault in batch.triggered)
    if deadline_s is None or batch.attempt_index > 0 or batch.ending in _CUT or is_misled:
        return []
    late_s = batch.heard.last_begun_s - batch.allowance_s - float(deadline_s)
    if late_s <= _BEGIN_S:
        return []
    return [f"a VM was begun {late_s:.1f} s after the deadline"]


def _check_ending(batch: BatchEvidence) -> list[str]:
    """A job without faults of chance ends as its scenario says."""
    scenario = batch.scenario
    if batch.attempt_index > 0:
        is_good = batch.ending is Ending.OK or any(
            evidence.is_too_old for evidence in batch.evidences.values()
        )
        return [] if is_good else [f"the next job ends {batch.ending.value}: {batch.error}"]
    if set(batch.triggered) - set(scenario.faults.faults):
        return []
    match scenario.expect:
        case "ok" if scenario.failing:
            wanted, text = Ending.FAILED, ""
        case "ok":
            wanted, text = Ending.OK, ""
        case "killed" | "cancelled":
            wanted, text = Ending(scenario.expect), ""
        case text:
            wanted = Ending.FAILED
    if batch.ending is not wanted or text not in batch.error:
        return [f"the job ends {batch.ending.value}: '{batch.error}', not {wanted.value}: '{text}'"]
    if wanted is Ending.FAILED and not text:
        expected = sorted(map(int, scenario.failing))
        if list(batch.failed_vmids) != expected:
            return [f"{list(batch.failed_vmids)} failed, it should be {expected}"]
    return []


def _check_hooks(batch: BatchEvidence) -> list[str]:
    """The script hears of the job before the first VM and after the last; each word once."""
    if not batch.scenario.options.get("script"):
        return []
    order = [(call.phase if call.vmid == 0 else "") for call in batch.hook_calls]
    places = [_JOB_PHASES.index(phase) for phase in order]
    found = []
    if places != sorted(places):
        found.append(f"phases of the job out of order: {', '.join(filter(None, order))}")
    found += [
        f"{phase} was called {count} times"
        for phase, count in Counter(filter(None, order)).items()
        if count > 1
    ]
    if batch.ending is Ending.OK and "job-end" not in order:
        found.append("job-end was not called")
    return found


def _check_strays(batch: BatchEvidence) -> list[str]:
    """No file is left that belongs to no VM."""
    return [f"file {path} is left" for path in batch.stray_files]


def _check_secrets(batch: BatchEvidence) -> list[str]:
    """No secret in what is told of the job."""
    lines = [*batch.heard.job_lines, batch.error]
    lines += [text for notice in batch.heard.notices for text in (notice.subject, notice.text)]
    return [f"a secret is told: {line[:80]}" for line in lines if batch.secret in line]


BATCH_CHECKERS: Mapping[str, Callable[[BatchEvidence], list[str]]] = MappingProxyType(
    {
        "batch-results": _check_results,
        "batch-independence": _check_independence,
        "batch-summary": _check_summary,
        "batch-ends": _check_ends,
        "batch-notice": _check_notice,
        "batch-crowd": _check_crowd,
        "batch-deadline": _check_deadline,
        "batch-ending": _check_ending,
        "batch-hooks": _check_hooks,
        "batch-strays": _check_strays,
        "batch-secrets": _check_secrets,
    }
)


def judge_batch(batch: BatchEvidence) -> list[Violation]:
    """All violations in one attempt, in the order of the checkers."""
    return [
        Violation(checker=name, text=text)
        for name, check in BATCH_CHECKERS.items()
        for text in check(batch)
    ]
