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
    assert tuple(read_keys(str(file)).found) == HASHES
    monkeypatch.setenv("PALISCRIBE_API_KEYS", f"{TWO}, {ONE}")
    assert read_keys(None).found == dict.fromkeys(HASHES[::-1], "")
    assert read_keys(str(file)).found == dict.fromkeys(HASHES, "")


def test_keys_are_compared_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "a-key-of-16-chars#and-more"
    (tmp_path / "keys").write_text(f"\ufeff{whole}\n  # a comment\n\t#another\nschlüssel-für-alle\n", encoding="utf-8")
    keys = Keys(read_keys(str(tmp_path / "keys")).found)
    admit(keys, f"Bearer {whole}")
    admit(keys, "Bearer " + "schlüssel-für-alle".encode().decode("latin-1"))
    for part in (whole.partition("#")[0], f"\ufeff{whole}", "schlussel-fur-alle", "schlu\u0308ssel-fu\u0308r-alle"):
        with pytest.raises(RequestError):
            admit(keys, "Bearer " + part.encode().decode("latin-1"))
    monkeypatch.setenv("PALISCRIBE_API_KEYS", f"{whole},,")
    assert list(read_keys(None).found) == [hashlib.sha256(whole.encode()).hexdigest()]


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
    assert text not in str(refused.value).replace("sha256: must", "").replace(str(tmp_path), "")
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(str(tmp_path / "nothing"))


def test_every_known_hash_is_compared_against_timing_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(known: str, given: str) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("paliscribe.online.keys.hmac.compare_digest", compare)
    admit(Keys(dict.fromkeys(HASHES, "")), f"Bearer {ONE}")
    assert compared == list(HASHES)


def test_without_keys_no_authentication_is_required() -> None:
    admit(Keys({}), None)
    with pytest.raises(RequestError) as refused:
        admit(Keys(dict.fromkeys(HASHES, "")), None)
    assert refused.value.status == 401


def test_keys_of_a_tenant(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# two of one\nacme:{ONE}\n\nacme:sha256:{HASHES[1]}  # the new one\nbeta-2: {ONE}x\n{TWO}y\n")
    keys = Keys(read_keys(str(file)).found)
    callers = [admit(keys, f"Bearer {key}") for key in (ONE, TWO, f"{ONE}x", f"{TWO}y")]
    own = hashlib.sha256(hashlib.sha256(f"{TWO}y".encode()).hexdigest().encode()).hexdigest()[:16]
    assert callers == ["tenant-acme", "tenant-acme", "tenant-beta-2", own]
    assert admit(keys, f"Bearer acme:{ONE}") == "tenant-acme", "it was a key before there were tenants"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"Acme:{ONE}", "before a colon is a tenant's name"),
        (f":{ONE}", "before a colon is a tenant's name"),
        (f"../open:{ONE}", "before a colon is a tenant's name"),
        ("acme:short", "at least 16"),
        ("acme:", "at least 16"),
        ("acme:sha256:12", "64 hexadecimal digits"),
        (f"beta:{ONE}", "with another tenant or none"),
        (ONE, "with another tenant or none"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_not_shown(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "keys").write_text(f"# ours\nacme:{ONE}\n{line}\n")
    with pytest.raises(UsageError, match=f"keys: line 3: .*{words}") as refused:
        read_keys(str(tmp_path / "keys"))
    said = str(refused.value).replace(str(tmp_path), "")
    assert ONE not in said and "acme:" not in said and "short" not in said and "\n" not in said


def test_a_bad_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISCRIBE_API_KEYS", f"acme:{ONE},tiny")
    with pytest.raises(UsageError, match="PALISCRIBE_API_KEYS: key 2: an API key needs at least 16") as refused:
        read_keys(None)
    assert "tiny" not in str(refused.value)
