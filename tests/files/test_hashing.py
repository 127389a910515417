"""Digests of texts and files."""

from sdft_jax.files.hashing import file_sha256, short_digest

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digests_are_those_of_the_standard(tmp_path):
    assert short_digest("") == EMPTY[:16]
    assert short_digest("abc") == ABC[:16]
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == ABC
