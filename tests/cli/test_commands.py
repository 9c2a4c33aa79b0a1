"""Every command by its JSON and its exit status; secrets and settings; vaults that can't be used as they are."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from harness import Cli, needs_root

from lumina_vault import crypto, ids
from lumina_vault.crypto import Keys
from lumina_vault.model import Config, encode

COMMANDS = [
    "init", "snapshot", "restore", "snapshots", "show", "ls", "diff", "find", "cat", "stats", "verify", "doctor",
    "index rebuild", "key add", "key list", "key remove",
]  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    (path / "conf").mkdir(parents=True)
    (path / "conf" / "app.toml").write_text("a = 1\n")
    (path / "data.bin").write_bytes(os.urandom(300_000))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(cli: Cli, command: str) -> None:
    assert f"Example: " in cli(*command.split(), "--help")  # noqa: F541


def test_help_lists_the_commands_and_exit_statuses(cli: Cli) -> None:
    text = cli("--help")
    assert all(name.split()[0] in text for name in COMMANDS)
    assert "13 damage found" in " ".join(text.split())
    assert cli("--version").startswith("vault ")


def test_the_life_of_a_vault(cli: Cli, encrypted: Path, source: Path) -> None:
    assert cli.json("snapshots") == []
    first = cli.json("snapshot", "--path", source, "--tag", "nightly")
    assert first["tags"] == ["nightly"]
    assert [c["id"] for c in first["components"]] == ["dir:src"]
    (source / "conf" / "app.toml").write_text("a = 2\n")
    (source / "new").write_bytes(b"")
    (source / "data.bin").chmod(0o600)
    second = cli.json("snapshot", "--path", source)
    assert [s["id"] for s in cli.json("snapshots")] == [first["id"], second["id"]]
    assert cli.json("show", first["id"][:6])["id"] == first["id"]
    assert {(c["change"], c["path"]) for c in cli.json("diff", first["id"], "latest")} == {
        ("M", "conf/app.toml"), ("+", "new"), ("m", "data.bin"),
    }  # fmt: skip
    assert cli.json("diff", "latest", "latest") == []
    assert [e["path"] for e in cli.json("ls", "latest:dir:src/conf")] == ["conf", "conf/app.toml"]
    assert [f["snapshot"] for f in cli.json("find", "*.toml")] == [second["id"], first["id"]]
    assert cli("cat", f"{first['short_id']}:dir:src/conf/app.toml") == "a = 1\n"
    stats = cli.json("stats")
    assert stats["components"][0]["logical"] > stats["components"][0]["distinct"] > 300_000
    checked = cli.json("verify", "--data", "all")
    assert checked["clean"]
    assert checked["bytes_read"] == stats["vault"]["pack_bytes"]
    assert cli.json("index", "rebuild")["snapshots"] == 2
    assert [s["id"] for s in cli.json("snapshots")] == [first["id"], second["id"]]
    assert all(f["ok"] for f in cli.json("doctor"))
    for command in (
        ["snapshots"],
        ["show", "latest"],
        ["ls", "latest"],
        ["stats"],
        ["doctor"],
        ["diff", first["id"], "latest"],
    ):
        assert cli(*command)


def test_usage_errors_touch_nothing(cli: Cli, encrypted: Path, source: Path) -> None:
    for arguments in (
        ["snapshot"], ["snapshot", "--path", "nowhere"], ["snapshot", "--path", source / "data.bin"],
        ["snapshot", "--path", source, "--tag", "a,b"], ["snapshot", "--from-command", "x"],
        ["show", "abcd"], ["show", "zz"],
        ["snapshot", "--path", source, "--exclude-file", "nowhere"], ["verify", "--data", "7x"], ["cat", "latest"],
        ["key", "remove", "ffff"],
    ):  # fmt: skip
        cli(*arguments, status=2)
        assert cli.err.strip()
    assert cli.json("snapshots") == []


def test_a_command_that_fails_makes_no_snapshot(cli: Cli, encrypted: Path) -> None:
    cli("snapshot", "--from-command", "db", "--", "sh", "-c", "echo some data; exit 7", status=1)
    assert "exit status 7" in cli.err
    cli("snapshot", "--from-command", "db", "--", "no-such-command", status=2)
    assert cli.json("snapshots") == []


def test_dry_run_stores_nothing(cli: Cli, encrypted: Path, source: Path) -> None:
    before = sorted(p.name for p in encrypted.rglob("*"))
    plan = cli.json("snapshot", "--path", source, "--dry-run")["plan"]
    assert [(p["component"], p["files"]) for p in plan] == [("dir:src", 2)]
    assert sorted(p.name for p in encrypted.rglob("*")) == before


def test_no_vault(cli: Cli, tmp_path: Path) -> None:
    for command in (["snapshots"], ["verify"], ["snapshot", "--path", tmp_path], ["index", "rebuild"]):
        cli(*command, "--vault", tmp_path / "none", status=10)
        assert "vault init" in cli.err
    cli("doctor", "--vault", tmp_path / "none", status=1)


def test_init_refuses_what_is_there(cli: Cli, encrypted: Path, tmp_path: Path) -> None:
    cli("init", status=2)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_bytes(b"x")
    cli("init", "--no-encrypt", "--vault", tmp_path / "used", status=1)
    assert os.listdir(tmp_path / "used") == ["file"]


def test_passphrases_from_everywhere(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_URL", str(tmp_path / "vault"))
    cli("init", status=2)  # no terminal to ask on
    (tmp_path / "pass").write_text("correct horse\n")
    monkeypatch.setenv("VAULT_PASSPHRASE_FILE", str(tmp_path / "pass"))
    assert "correct" not in cli("init") + cli.err
    cli("snapshots")
    monkeypatch.setenv("VAULT_PASSPHRASE", "wrong horse")  # the environment's value goes before the file
    cli("snapshots", status=12)
    assert "wrong horse" not in cli.err
    monkeypatch.setenv("VAULT_PASSPHRASE", "correct horse")
    cli("snapshots")
    monkeypatch.delenv("VAULT_PASSPHRASE")
    monkeypatch.delenv("VAULT_PASSPHRASE_FILE")
    cli("snapshots", status=12)
    (tmp_path / ".env").write_text("VAULT_PASSPHRASE='correct horse'\n")
    cli("snapshots")
    (tmp_path / ".env").unlink()
    (tmp_path / "vault.toml").write_text('[vault]\npassphrase_file = "pass"\n')
    cli("snapshots")
    (tmp_path / "vault.toml").write_text('[vault]\npasphrase = "x"\n')
    cli("snapshots", status=2)
    assert "does not know pasphrase" in cli.err


def test_settings_of_another_user_are_refused(cli: Cli, plain: Path, tmp_path: Path) -> None:
    needs_root()
    (tmp_path / ".env").write_text("VAULT_URL=/elsewhere\n")
    os.chown(tmp_path / ".env", 1234, 1234)
    cli("snapshots", status=2)
    assert "1234" in cli.err


def test_keys_are_added_and_removed(cli: Cli, encrypted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE((tmp_path / "vault.key").stat().st_mode) == 0o600
    first = cli.json("key", "list")[0]["slot"]
    cli("key", "remove", first, status=2)  # the last one
    added = cli.json("key", "add", "--new-key-file", tmp_path / "second.key", "--label", "spare")
    assert {s["label"] for s in cli.json("key", "list")} == {"", "spare"}
    monkeypatch.setenv("VAULT_KEY_FILE", str(tmp_path / "second.key"))
    cli("snapshots")
    cli("key", "remove", first[:8])
    assert [s["slot"] for s in cli.json("key", "list")] == [added["slot"]]
    monkeypatch.setenv("VAULT_KEY_FILE", str(tmp_path / "vault.key"))
    cli("snapshots", status=12)
    (tmp_path / "junk.key").write_text("not a key")
    cli("snapshots", "--key-file", tmp_path / "junk.key", status=12)
    cli("snapshots", "--key-file", tmp_path / "none.key", status=2)


def test_children_do_not_inherit_secrets(cli: Cli, encrypted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "for the child")
    cli("snapshot", "--from-command", "env", "--", "env")
    text = subprocess.run(
        [sys.executable, "-m", "lumina_vault", "cat", "latest:stream:env"], capture_output=True, text=True, check=True
    ).stdout
    assert "PGPASSWORD=for the child" in text
    assert "VAULT_KEY_FILE" not in text


def test_a_url_with_a_password_is_refused_without_showing_it(cli: Cli) -> None:
    cli("snapshots", "--vault", "s3://me:hunter2@host/bucket", status=2)
    assert "hunter2" not in cli.err
    assert "VAULT_URL" in cli.err


def test_a_known_vault_may_not_become_another(
    cli: Cli, encrypted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("init", "--vault", tmp_path / "foreign", "--key-file", tmp_path / "foreign.key")
    shutil.rmtree(encrypted)
    shutil.copytree(tmp_path / "foreign", encrypted)
    cli("snapshots", "--key-file", tmp_path / "foreign.key", status=13)
    assert "replaced" in cli.err
    shutil.rmtree(encrypted)
    key = os.environ["VAULT_KEY_FILE"]
    monkeypatch.delenv("VAULT_KEY_FILE")
    cli("init", "--no-encrypt", "--vault", tmp_path / "bare")
    shutil.copytree(tmp_path / "bare", encrypted)
    cli("snapshots", status=13)  # this client knew an encrypted one
    cli("snapshots", "--vault", tmp_path / "bare", "--key-file", key, status=13)  # a key was given
    assert "not encrypted" in cli.err


def test_a_newer_format_is_refused(cli: Cli, plain: Path, source: Path) -> None:
    cli("snapshot", "--path", source)
    raw = (plain / "config").read_bytes()
    newer = bytearray(raw)
    newer[7] = 2
    (plain / "config").chmod(0o600)
    (plain / "config").write_bytes(newer)
    cli("snapshots", status=14)
    header = crypto.Header.parse(raw, "config")
    config = Config(vault=header.vault, created=1, encryption="none", requires=["time travel"])
    (plain / "config").write_bytes(crypto.seal(Keys(header.vault, None), crypto.CONFIG, encode(config)))
    cli("snapshot", "--path", source, status=14)
    assert "time travel" in cli.err


def test_a_missing_index(cli: Cli, encrypted: Path, source: Path) -> None:
    taken = cli.json("snapshot", "--path", source)
    for path in encrypted.glob("index.db*"):
        path.unlink()
    assert [s["id"] for s in cli.json("snapshots")] == [taken["id"]]
    assert "temporary" in cli.err
    cli("restore", "latest", "--to", "out")
    cli("snapshot", "--path", source, status=13)
    assert "vault index rebuild" in cli.err
    assert not list(encrypted.glob("index.db*"))
    cli("index", "rebuild")
    assert cli.json("snapshot", "--path", source)["new_bytes"] == 0


def test_read_only_media(cli: Cli, encrypted: Path, source: Path, tmp_path: Path) -> None:
    needs_root()
    cli("snapshot", "--path", source)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in encrypted.rglob("*"))
    subprocess.run(["mount", "--bind", encrypted, encrypted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", encrypted], check=True)
        assert len(cli.json("snapshots")) == 1
        assert "reading without a session" in cli.err
        cli("restore", "latest", "--to", "out")
        cli("verify", "--data", "all")
        cli("snapshot", "--path", source, status=1)
    finally:
        subprocess.run(["umount", encrypted], check=True)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in encrypted.rglob("*")) == before


def _craft(plain: Path, path: bytes) -> None:
    """A vault whose tree holds a hostile path, made as an attacker who can write the store would: by the rules."""
    from lumina_vault import settings
    from lumina_vault.model import Component, Entry, Record
    from lumina_vault.ops.vaults import open_vault
    from lumina_vault.store.trees import TreeBuilder
    from lumina_vault.store.uploader import Counter, Uploader

    with open_vault(settings.load(), write=True) as repository, repository.session("writer") as session:
        with Uploader(repository.backend, repository.keys, session) as uploader:
            builder = TreeBuilder(repository.keys, uploader, Counter())
            builder.add(Entry(b"", 0o40755, 0, 0, 0, 0, 0, 1, 2))
            builder.add(Entry(path, 0o100644, 0, 0, 0, 0, 0, 2, 1))
            tree = builder.finish()
            uploader.finish()
        component = Component(kind="dir", name="src", tree=tree)
        record = Record(
            vault=repository.keys.vault, time=1, end=2, host="h", user="u", program="p", components=[component]
        )
        repository.store_record(session, record)


@pytest.mark.parametrize("path", [b"../escaped", b"/tmp/escaped", b"a/../../escaped", b"a/b", b"x\0y", b"./x"])
def test_a_path_outside_the_root_is_refused(cli: Cli, plain: Path, tmp_path: Path, path: bytes) -> None:
    _craft(plain, path)
    before = {str(p) for p in tmp_path.rglob("*") if "escaped" in p.name}
    cli("restore", "latest", "--to", tmp_path / "out", status=13)
    assert {str(p) for p in tmp_path.rglob("*") if "escaped" in p.name} == before == set()
    assert not os.path.lexists("/tmp/escaped")


@pytest.mark.parametrize("name", ["..", "a/b", "."])
def test_a_component_name_outside_the_root_is_refused(cli: Cli, plain: Path, source: Path, name: str) -> None:
    from lumina_vault import settings
    from lumina_vault.model import Component, Content, Record
    from lumina_vault.ops.vaults import open_vault

    with open_vault(settings.load(), write=True) as repository, repository.session("writer") as session:
        component = Component(kind="stream", name=name, content=Content(0, 0, []))
        record = Record(
            vault=repository.keys.vault, time=1, end=2, host="h", user="u", program="p", components=[component]
        )
        repository.store_record(session, record)
    cli("restore", "latest", "--to", "out", status=13)
    assert not Path("out").exists()


def test_output_is_valid_json_for_any_name(cli: Cli, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    with open(os.fsencode(tmp_path) + b"/odd/\xff\n\x1b[0m", "wb"):
        pass
    cli("snapshot", "--path", tmp_path / "odd")
    entries = json.loads(cli("ls", "latest:dir:odd", "--json"))
    assert os.fsencode(entries[1]["path"]) == b"\xff\n\x1b[0m"
    assert msgspec.json.decode(cli("snapshots", "--json"))
    assert "\x1b" not in cli("find", "*") + cli("diff", "latest", "latest")


def test_short_ids_must_be_unambiguous(cli: Cli, plain: Path, source: Path) -> None:
    cli("snapshot", "--path", source)
    assert len(cli.json("show", "latest")["short_id"]) == ids.SHORT
    cli("show", "a", status=2)
