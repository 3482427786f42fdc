"""`ddx completion`: the script that lets a shell complete commands, flags and their values."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options

SHELLS = ("bash", "zsh", "fish")


class Bash(BashComplete):
    """Completion in bash, which hands over `--flag=value` as three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor's one, and that."""
        words, incomplete = super().get_completion_args()
        joined = [word for before, word in zip(["", *words], words, strict=False) if word != "=" or before[:2] != "--"]
        return joined, "" if incomplete == "=" and joined and joined[-1].startswith("--") else incomplete


add_completion_class(Bash)


@click.command(
    epilog="""\b
Examples:
  ddx completion bash >> ~/.bashrc
  ddx completion zsh >> ~/.zshrc
  ddx completion fish > ~/.config/fish/completions/ddx.fish
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
@config_options(dry_run=False)
def command(invocation: Invocation, shell: str) -> None:
    """Print the completion script of a shell.

    The shell then completes commands, flags and values: names that ddx knows, the stores and students of the
    workspace, and paths.
    """
    from ddx.cli.console import emit, emit_json
    from ddx.cli.main import COMPLETES, group

    found = get_completion_class(shell)
    assert found is not None
    script = found(group, {}, "ddx", COMPLETES).source()
    if invocation.as_json:
        emit_json({"shell": shell, "script": script})
    else:
        emit(script)
