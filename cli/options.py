"""Flags made from config dataclasses, and the ones that every command shares.

    @click.command()
    @click.argument("sources", nargs=-1)
    @config_options(PrecomputeConfig)
    def command(invocation: Invocation, sources: tuple[str, ...]) -> None:
        config = invocation.build(PrecomputeConfig)

Defaults < the workspace's ddx.yaml < --config < --set < flags.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ddx.cli.did_you_mean import flag_hint, key_hint
from ddx.cli.invocation import Invocation, find_config
from ddx.cli.single_files import base_option, with_teacher_folder
from ddx.cli.suggestions import configs, folders, suggest_keys, suggestions
from ddx.config import Settings, UnknownKeyError, field_types, parse_sets, read_yaml
from ddx.errors import UsageError
from ddx.values import FLAGS
from ddx.workspace import Workspace

Command = TypeVar("Command", bound=Callable[..., Any])


def config_options(*config_classes: type[Any], dry_run: bool = True) -> Callable[[Command], Command]:
    """Decorate a click callback: it receives `invocation` and its own arguments in place of all these flags.

    One flag a field of the classes (a name that several share becomes one flag), then --config, --set, --workspace,
    --json, --quiet, --dry-run and --debug. Apply it directly above the function, below @click.command.
    """
    names = list(dict.fromkeys(name for cls in config_classes for name in field_types(cls)))

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapper(**arguments: Any) -> Any:
            more = click.get_current_context().meta.get(MORE, ())
            asked = [*names, *(option.name for option in more if option.name)]
            flags = {name: arguments.pop(name) for name in asked if name in arguments}
            base = arguments.pop("teacher_base", None)
            invocation = _invocation(flags, arguments)
            if "teacher" in names:
                invocation = with_teacher_folder(invocation, base)
            try:
                return function(invocation=invocation, **arguments)
            except UnknownKeyError as error:
                error.hint = key_hint(invocation.command, error.key, error.names) or error.hint
                raise

        decorated: Any = wrapper
        if "teacher" in names:
            decorated = base_option(decorated)
        for option in reversed(_shared_options(names, dry_run)):
            decorated = option(decorated)
        for name in reversed(names):
            cls = next(cls for cls in config_classes if name in field_types(cls))
            option_of_field = _flag(cls, name)
            if option_of_field is not None:
                decorated = option_of_field(decorated)
        return typing.cast(Command, decorated)

    return decorate


MORE = "ddx.cli.options.more"


class ExtendedCommand(click.Command):
    """A command that has further flags, which depend on what else is on its line."""

    def more_settings(self, arguments: list[str]) -> tuple[str, tuple[type[Any], ...]]:
        """Return what the further flags are about, and the config classes that they fill; to be overridden."""
        return "", ()

    def unknown_flag(self, flag: str, arguments: list[str]) -> UsageError | None:
        """Return what to say of a flag that is not there, if there is more to say than a similar one's name."""
        return None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the further flags, then parse."""
        # the shell asks at every key: what needs torch is left out then
        title, classes = ("", ()) if ctx.resilient_parsing else self.more_settings(args)
        known = {option.name for option in self.params}
        made = {name: _flag(cls, name) for cls in classes for name in field_types(cls) if name not in known}
        ctx.meta[MORE] = [_made(decorator) for decorator in made.values() if decorator is not None]
        ctx.meta[MORE + ".title"] = title
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if flag_hint(_command_name(ctx), error.option_name):
                raise
            raise self.unknown_flag(error.option_name, given) or error from None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return its own flags and the further ones."""
        return [*super().get_params(ctx), *ctx.meta.get(MORE, ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the further flags in a section of their own."""
        for title, parameters in (
            ("Options", super().get_params(ctx)),
            (ctx.meta.get(MORE + ".title", ""), ctx.meta.get(MORE, ())),
        ):
            records = [record for parameter in parameters if (record := parameter.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _made(decorator: Callable[[Any], Any]) -> click.Option:
    """Return the option that a decorator of click puts on a function."""

    def carrier() -> None:
        pass

    decorator(carrier)
    option: click.Option = carrier.__click_params__[0]  # type: ignore[attr-defined]
    return option


def _invocation(flags: Mapping[str, Any], arguments: dict[str, Any]) -> Invocation:
    workspace = Workspace(arguments.pop("workspace", None))
    name = _command_name(click.get_current_context())
    layers = [workspace.settings(name)]
    config, sets = arguments.pop("config", None), arguments.pop("sets", ())
    if config:
        layers.append(read_yaml(find_config(config)))
    layers.append(parse_sets(sets))
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    layers.append(Settings(given, FLAGS))
    return Invocation(
        command=name,
        workspace=workspace,
        layers=tuple(layers),
        as_json=arguments.pop("as_json"),
        quiet=arguments.pop("quiet"),
        dry_run=arguments.pop("dry_run", False),
        debug=arguments.pop("debug"),
    )


def _command_name(context: click.Context) -> str:
    """Return a command as it is typed behind `ddx`: `distill`, `bench kernels`."""
    name = context.info_name or ""
    parent = context.parent
    return f"{_command_name(parent)} {name}" if parent is not None and parent.parent is not None else name


def _shared_options(names: Sequence[str], dry_run: bool) -> list[Callable[[Any], Any]]:
    config = [
        click.option(
            "--config",
            metavar="FILE",
            help="YAML file of settings, or the name of a preset.",
            shell_complete=configs,
        ),
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY=VALUE",
            help="One setting; may be repeated.",
            shell_complete=suggest_keys(names),
        ),
    ]
    run = [click.option("--dry-run", is_flag=True, help="Show the plan, and do nothing.")]
    shared = [
        click.option(
            "--workspace",
            metavar="DIR",
            help="Folder of all outputs.  [default: $DDX_WORKSPACE or ./runs]",
            shell_complete=folders,
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print the result as JSON on stdout, and progress as JSON on stderr unless it is a terminal.",
        ),
        click.option("--quiet", is_flag=True, help="No progress on stderr."),
        click.option("--debug", is_flag=True, help="Show a traceback for every error."),
    ]
    return (config if names else []) + (run if dry_run else []) + shared


def _flag(cls: type[Any], name: str) -> Callable[[Any], Any] | None:
    """Return the click option of one field, or None when the field has no flag."""
    spec = next(spec for spec in dataclasses.fields(cls) if spec.name == name)
    flag = spec.metadata.get("flag")
    if flag == "":
        return None
    flag = flag or "--" + name.replace("_", "-")
    kind, many = _bare(field_types(cls)[name])
    help_text = _help(spec)
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    choices = spec.metadata.get("choices")
    metavar = spec.metadata.get("metavar") or _metavar(kind, choices)
    # Values stay text here: `build` converts flags, --set and YAML by the same rules and with the same errors.
    return click.option(
        flag,
        name,
        default=None,
        multiple=many,
        metavar=metavar,
        help=help_text,
        shell_complete=suggestions(name, kind, choices),
    )


def _help(spec: dataclasses.Field[Any]) -> str:
    text = str(spec.metadata.get("help", ""))
    text = text[:1].upper() + text[1:]
    default = spec.default
    if default is dataclasses.MISSING or default is None or default == () or default == "":
        return text
    if isinstance(default, tuple):
        default = ",".join(str(item) for item in default)
    if isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, float):
        default = str(default) if len(str(default)) < 8 else f"{default:.4g}"  # not all digits of a logarithm
    return f"{text}  [default: {default}]"


def _bare(kind: Any) -> tuple[Any, bool]:
    """Return a field's type without `| None` and tuple, and whether it was a tuple."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _bare(next(argument for argument in arguments if argument is not type(None)))
    if origin in (tuple, list):
        return arguments[0], True
    return kind, False


def _metavar(kind: Any, choices: tuple[str, ...] | None) -> str:
    if choices:
        return "|".join(choices)
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(str(argument) for argument in typing.get_args(kind))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
