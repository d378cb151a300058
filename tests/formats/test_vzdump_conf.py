"""The defaults file of vzdump: lines, kinds of options and warnings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.formats.vzdump_conf import (
    OPTION_RULES,
    VzdumpConf,
    check_option,
    parse_vzdump_conf,
)

LINES = st.lists(
    st.builds("{}: {}".format, st.sampled_from(sorted(OPTION_RULES)), st.text(max_size=8))
    | st.text(max_size=12),
    max_size=8,
).map("\n".join)


def _parse(text: str) -> VzdumpConf:
    return parse_vzdump_conf(text.encode())


def test_parse_options_are_read() -> None:
    conf = _parse(
        "# defaults\n\n  mode: stop \r\nbwlimit:500\nremove: no\nnotes-template: {{a}}: b\n"
    )
    assert conf.options == {
        "mode": "stop", "bwlimit": "500", "remove": "0", "notes-template": "{{a}}: b",
    }  # fmt: skip
    assert conf.warnings == ()


def test_parse_text_and_bytes_read_alike() -> None:
    assert parse_vzdump_conf("mode: stop\n") == parse_vzdump_conf(b"mode: stop\n")


def test_parse_empty_file_gives_nothing() -> None:
    assert parse_vzdump_conf(b"") == VzdumpConf(values={}, warnings=())


def test_parse_repeated_scalar_keeps_the_last() -> None:
    assert _parse("mode: stop\nmode: suspend\n").values == {"mode": ("suspend",)}


def test_parse_repeated_array_accumulates() -> None:
    conf = _parse("exclude-path: /a,b\nexclude-path: /c\n")
    assert conf.values == {"exclude-path": ("/a,b", "/c")}
    assert conf.options == {"exclude-path": "/a,b,/c"}


def test_parse_unknown_key_is_tolerated() -> None:
    assert _parse("future-option: 1\n") == VzdumpConf(values={}, warnings=())


def test_parse_other_line_is_warned_about() -> None:
    assert _parse("  no colon here \n").warnings == ("ignore config line: no colon here",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "mode: pause",
            "value 'pause' does not have a value in the enumeration 'snapshot, suspend, stop'",
        ),
        ("ionice: 9", "value must have a maximum value of 8"),
        ("bwlimit: -1", "value must have a minimum value of 0"),
        ("lockwait: soon", "type check ('integer') failed - got 'soon'"),
        ("remove: maybe", "type check ('boolean') failed - got 'maybe'"),
        ("storage: a", "storage ID 'a' contains illegal characters"),
        ("exclude: 100,x", "strange VM ID 'x'"),
        ("dumpdir:", "value is missing"),
        ("job-id: a b", "value must not contain blanks"),
        ("notes-template: " + "x" * 1025, "value may only be 1024 characters long"),
        ("fleecing: 1", "'storage' parameter is required when 'enabled' is set"),
        ("fleecing: 1,on", "duplicate key in comma-separated list property: enabled"),
        ("performance: max-workers=0", "max-workers: value must have a minimum value of 1"),
        ("performance: max-workers=257", "max-workers: value must have a maximum value of 256"),
        ("performance: pbs-entries-max=0", "pbs-entries-max: value must have a minimum value of 1"),
        ("performance: x=1", "invalid key in comma-separated list property: x"),
        (
            "prune-backups: keep-all=1,keep-last=2",
            "keep-all cannot be set together with other options.",
        ),
        ("prune-backups: keep-last=-1", "keep-last: value must have a minimum value of 0"),
    ],
)
def test_parse_invalid_value_is_ignored_with_warning(line: str, reason: str) -> None:
    name = line.split(":")[0]
    conf = _parse(line)
    assert conf.options == {}
    assert conf.warnings == (f"parse error in '/etc/vzdump.conf' - '{name}': {reason}",)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("fleecing: 1,storage=fast", "1,storage=fast"),
        ("fleecing: 0", "0"),
        ("performance: max-workers=256", "max-workers=256"),
        ("prune-backups: keep-last=3,keep-all=0", "keep-last=3,keep-all=0"),
        ("mailto: a@b.c;root  d", "a@b.c,root,d"),
        ("exclude: 100 101,102", "100,101,102"),
        ("stdexcludes: on", "1"),
        ("zstd: 0", "0"),
        ("compress: zstd", "zstd"),
    ],
)
def test_parse_valid_value_is_kept_in_plain_form(line: str, value: str) -> None:
    conf = _parse(line)
    assert conf.options == {line.split(":")[0]: value}
    assert conf.warnings == ()


def test_parse_storage_beats_dumpdir_with_warning() -> None:
    conf = _parse("dumpdir: /x\nstorage: local\n")
    assert conf.options == {"storage": "local"}
    assert conf.warnings == (
        "both 'storage' and 'dumpdir' defined in '/etc/vzdump.conf' - ignoring 'dumpdir'",
    )


@pytest.mark.parametrize("name", [name for name, rule in OPTION_RULES.items() if rule.default])
def test_option_default_fits_its_own_rule(name: str) -> None:
    assert check_option(name, OPTION_RULES[name].default or "") == OPTION_RULES[name].default


@given(LINES.map(str.encode) | st.binary())
def test_parse_any_bytes_never_raises(raw: bytes) -> None:
    assert parse_vzdump_conf(raw).values.keys() <= OPTION_RULES.keys()
