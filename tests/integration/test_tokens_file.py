"""The tokens file: the commands that write it, and a file that cannot be used while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import UnauthenticatedError
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security import permissions as auth
from lightningstore.service.security import tokens
from lightningstore.service.security.permissions import Role

from tests.integration.process import run
from tests.integration.test_security import Secured

pytestmark = pytest.mark.asyncio


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    """A server that wants tokens."""
    return Secured(tmp_path)


async def test_token_commands_make_list_and_revoke(tmp_path: Path) -> None:
    file = ("--file", "tokens")
    made = ("--role", "runner", "--name", "gpu", "--expires", "30d")
    code, secret, _ = await run("token", "new", *file, *made, folder=tmp_path)
    assert code == 0
    assert secret.startswith(auth.TOKEN_PREFIX)
    assert secret.strip() not in (tmp_path / "tokens").read_text()
    assert (tmp_path / "tokens").stat().st_mode & 0o777 == 0o600
    _, listed, _ = await run("token", "list", *file, folder=tmp_path)
    assert listed.startswith("gpu\trunner\t2")
    assert (await run("token", "revoke", *file, "gpu", folder=tmp_path))[0] == 0
    code, _, errors = await run("token", "revoke", *file, "gpu", folder=tmp_path)
    assert code == 1
    assert "no token named gpu" in errors


async def test_bad_tokens_file_changes_nothing_while_serving(secured: Secured) -> None:
    async with secured.served(), secured.client("runner") as store:
        good = secured.file.read_text()
        for bad in ("", "runner runner never sha256:abc\n", "\x00"):
            secured.file.write_text(bad)
            await secured.clock.advance(1)
            await store.dequeue_rollouts(1)
        secured.file.write_text(good)


async def test_tokens_file_that_stays_unusable_lets_nobody_in_until_it_is_mended(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    good = secured.file.read_text()
    async with secured.served(), secured.client("runner") as store:
        await store.dequeue_rollouts(1)
        secured.file.chmod(0o666)
        for _ in range(int(tokens.STALE_SECONDS) - 1):
            await secured.clock.advance(1)
            await store.dequeue_rollouts(1)
        for _ in range(3):
            await secured.clock.advance(1)
        for _ in range(2):
            with pytest.raises(UnauthenticatedError, match="tokens file"):
                await store.dequeue_rollouts(1)
            await secured.clock.advance(1)
        lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert [str(secured.file) in line for line in lines] == [True, True], lines
        secured.file.chmod(0o600)
        secured.file.write_text(good)
        await secured.clock.advance(tokens.RETRY_SECONDS)
        await store.dequeue_rollouts(1)


async def test_tokens_file_is_read_again_though_nothing_about_it_has_changed(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, for instance: the file is unchanged when it becomes readable."""
    async with secured.served(), secured.client("runner") as store:
        await store.dequeue_rollouts(1)
        tokens.append(secured.file, auth.new_token("more", Role.RUNNER, None)[1])
        with monkeypatch.context() as patch:
            patch.setattr(tokens, "read_tokens", unreadable)
            await secured.clock.advance(tokens.LOOK_SECONDS)
            await store.dequeue_rollouts(1)
        await secured.clock.advance(tokens.STALE_SECONDS + tokens.RETRY_SECONDS)
        await store.dequeue_rollouts(1)


def unreadable(path: Path) -> Any:
    raise Misconfigured(f"the tokens file {path} cannot be read: Too many open files")
