"""Whom mailto means."""

from vzdump_qemu.plan.addressing import Recipients, find_recipients, split_mailto


def test_mailto_is_split_at_commas_semicolons_and_blanks() -> None:
    assert split_mailto(["a@x,b@x; root\tc@x", "a@x", ""]) == ("a@x", "b@x", "root", "c@x")


def test_user_name_means_the_users_address() -> None:
    found = find_recipients(
        ("root@pam", "op@x", "eve@pve", "root"),
        {"root@pam": "admin@x", "eve@pve": "", "op@x": "op@x"},
    )
    assert found == Recipients(addresses=("admin@x", "op@x", "root"), unknown=("eve@pve",))


def test_word_that_is_no_address_is_unknown() -> None:
    assert find_recipients(("a@b@c", '"<x', "ü@x"), {}).unknown == ("a@b@c", '"<x', "ü@x")


def test_same_address_is_told_once() -> None:
    found = find_recipients(("root@pam", "admin@x"), {"root@pam": "admin@x"})
    assert found.addresses == ("admin@x",)
