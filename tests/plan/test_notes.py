"""Notes templates: host behaviour 2.11."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.plan.names import notes_name
from vzdump_qemu.plan.notes import NotesFacts, check_notes_template, expand_notes

FACTS = NotesFacts(vmid=100, vm_name="web", node_name="pve1", cluster_name="prod")


@pytest.mark.parametrize(
    ("template", "notes"),
    [
        ("", ""),
        ("{{cluster}}/{{node}}: {{guestname}} ({{vmid}})", "prod/pve1: web (100)"),
        (r"one\ntwo", "one\ntwo"),
        (r"C:\\{{node}}", "C:\\pve1"),
        (r"\\n", r"\n"),
        (r"ends in \\", "ends in \\"),
        ("ends in \\", "ends in \\"),
        ("{{ vmid }} {vmid} {{}}", "{{ vmid }} {vmid} {{}}"),
        ("{{{vmid}}}", "{100}"),
        ("Grüße, {{guestname}}", "Grüße, web"),
    ],
)
def test_template_is_expanded(template: str, notes: str) -> None:
    assert expand_notes(template, FACTS) == notes


def test_missing_names_have_defaults() -> None:
    facts = NotesFacts(vmid=100, vm_name="", node_name="pve1")
    assert expand_notes("{{cluster}}, {{guestname}}", facts) == "standalone node, VM 100"


def test_values_are_not_expanded_again() -> None:
    facts = NotesFacts(vmid=100, vm_name=r"{{node}}\n", node_name="pve1")
    assert expand_notes("{{guestname}}", facts) == r"{{node}}\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a\nb", "contains a line feed"),
        (r"a\tb", r"found unknown: escape sequence '\t' at char 1"),
        ("{{name}}", "found unknown: variable 'name' at char 0"),
        (
            r"{{vmid}} \x {{host}} \y",
            r"found unknown: escape sequence '\x' at char 9, escape sequence '\y' at char 21, "
            "variable 'host' at char 12",
        ),
        ("{{VMID}}", "found unknown: variable 'VMID' at char 0"),
        (r"\\\x", r"found unknown: escape sequence '\x' at char 2"),
    ],
)
def test_what_is_unknown_is_named_with_its_place(template: str, text: str) -> None:
    for use in (check_notes_template, lambda given: expand_notes(given, FACTS)):
        with pytest.raises(ConfigError) as caught:
            use(template)
        assert caught.value.message == text


def test_notes_lie_beside_the_whole_archive_name() -> None:
    name = "vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    assert notes_name(name) == f"{name}.notes"
