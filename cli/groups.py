"""Groups of commands that understand a mistyped name."""

from __future__ import annotations

import click

from ddx.cli.did_you_mean import command_hint
from ddx.errors import UsageError, nearest


class HelpfulGroup(click.Group):
    """A group that says which command was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was meant."""
        names = tuple(self.list_commands(ctx))
        if args and not args[0].startswith("-") and args[0] not in names:
            near, called = nearest(args[0], names), ctx.command_path
            hint = f"did you mean `{called} {near}`?" if near else f"`{called} --help` lists the commands"
            if ctx.parent is None:
                hint = command_hint(args[0]) or hint
            raise UsageError(f"there is no command `{args[0]}`", hint=hint)
        return super().resolve_command(ctx, args)
