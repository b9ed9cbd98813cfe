"""`lightningstore completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class
from lightningstore.service.cli.main import NAME, app

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    \b
    bash: echo 'eval "$(lightningstore completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(lightningstore completion zsh)"' >> ~/.zshrc
    fish: lightningstore completion fish > ~/.config/fish/completions/lightningstore.fish
    """  # noqa: D301
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"click has no completion for {shell}")
    click.echo(kind(app, {}, NAME, f"_{NAME.upper()}_COMPLETE").source())
