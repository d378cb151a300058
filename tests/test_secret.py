"""A secret shows itself to nobody, and is struck out of what others said."""

from __future__ import annotations

import pickle

import pytest

from vzdump_qemu.secret import Secret


@pytest.mark.parametrize(
    ("secret", "text", "told"),
    [
        ("s3cret", "no login with s3cret: s3cret", "no login with ***: ***"),
        ("a/b c", "GET /x?p=a%2Fb%20c and 'a/b c'", "GET /x?p=*** and '***'"),
        ('q"u\\o', '{"password": "q\\"u\\\\o"}', '{"password": "***"}'),
        ("pässe", '"p\\u00e4sse" and pässe', '"***" and ***'),
        ("", "nothing to hide", "nothing to hide"),
    ],
)
def test_secret_is_struck_out_of_a_text_in_every_form(secret: str, text: str, told: str) -> None:
    assert Secret(secret).hide_in(text) == told


def test_secret_is_neither_shown_nor_copied() -> None:
    assert "s3cret" not in repr(Secret("s3cret")) + str(Secret("s3cret"))
    with pytest.raises(TypeError):
        pickle.dumps(Secret("s3cret"))
