"""API keys: parsing, hashing, constant-time comparison."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from paliscribe.errors import RequestError, UsageError
from paliscribe.online.keys import Keys, read_keys

ONE, TWO = "the-first-key-of-two", "the-second-key-of-two"
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (ONE, TWO))


def admit(keys: Keys, authorization: str | None) -> str:
    return asyncio.run(keys.admit(authorization))


def test_keys_of_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{ONE}  # of the team\n\nsha256:{HASHES[1].upper()}\n{ONE}\n")
    assert read_keys(str(file)) == HASHES
    monkeypatch.setenv("PALISCRIBE_API_KEYS", f"{TWO}, {ONE}")
    assert read_keys(None) == HASHES[::-1]
    assert sorted(read_keys(str(file))) == sorted(HASHES)


def test_keys_are_compared_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "a-key-of-16-chars#and-more"
    (tmp_path / "keys").write_text(f"\ufeff{whole}\n  # a comment\n\t#another\nschlüssel-für-alle\n", encoding="utf-8")
    keys = Keys(read_keys(str(tmp_path / "keys")))
    admit(keys, f"Bearer {whole}")
    admit(keys, "Bearer " + "schlüssel-für-alle".encode().decode("latin-1"))
    for part in (whole.partition("#")[0], f"\ufeff{whole}", "schlussel-fur-alle", "schlu\u0308ssel-fu\u0308r-alle"):
        with pytest.raises(RequestError):
            admit(keys, "Bearer " + part.encode().decode("latin-1"))
    monkeypatch.setenv("PALISCRIBE_API_KEYS", f"{whole},,")
    assert read_keys(None) == (hashlib.sha256(whole.encode()).hexdigest(),)


@pytest.mark.parametrize("text", ["", "\n\n", "# none yet\n"])
def test_a_file_without_keys_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError, match="contains no key"):
        read_keys(str(tmp_path / "keys"))


@pytest.mark.parametrize(("text", "words"), [("short", "at least 16"), ("sha256:12", "64 hexadecimal digits")])
def test_bad_keys(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError, match=words) as refused:
        read_keys(str(tmp_path / "keys"))
    assert text not in str(refused.value).replace("sha256: must", "")
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(str(tmp_path / "nothing"))


def test_every_known_hash_is_compared_against_timing_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(known: str, given: str) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("paliscribe.online.keys.hmac.compare_digest", compare)
    admit(Keys(HASHES), f"Bearer {ONE}")
    assert compared == list(HASHES)


def test_without_keys_no_authentication_is_required() -> None:
    admit(Keys([]), None)
    with pytest.raises(RequestError) as refused:
        admit(Keys(HASHES), None)
    assert refused.value.status == 401
