"""The entry point. It finds the command, imports only its module, and turns failures into a line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from typing import Any, NoReturn

import click

from ddx import __version__
from ddx.cli.did_you_mean import argument_hint, flag_hint, near_flag
from ddx.cli.groups import HelpfulGroup
from ddx.cli.leaving import leave
from ddx.cli.third_party import quiet_libraries
from ddx.errors import DdxError, cure_of, nearest

# Each command is `command` in the module ddx.cli.<name>. The text repeats the first line of its docstring (a test
# compares them), so that `ddx --help` imports no command.
COMMANDS = {
    "precompute": "Encode images and captions into a store of latents and embeddings.",
    "distill": "Train a few-step student of a teacher from a store.",
    "import": "Make a student folder of weights that others published.",
    "sample": "Draw pictures with a student, or with a teacher.",
    "evaluate": "Score a teacher and its students.",
    "compare": "Put several students, or several reports, into one table.",
    "train": "Train a teacher from a recipe.",
    "prepare": "Tune a SANA teacher for continuous-time distillation.",
    "scenes": "Write the bundled captioned data set to a parquet file.",
    "run": "Run the stages of a YAML file, and skip finished ones.",
    "average": "Average the weights of several students.",
    "export": "Write a student in the format of another program.",
    "push": "Put a student on the Hugging Face hub.",
    "merge": "Join several stores into one, without encoding again.",
    "inspect": "Show the contents of a store, a student or a teacher.",
    "list": "List methods, teachers, stores, students and runs.",
    "bench": "Check and time the kernels on this machine.",
    "doctor": "Check this machine: versions, devices, kernels, caches, disk.",
    "completion": "Print the completion script of a shell.",
    "demo": "Distil the bundled teacher, and show the pictures and scores.",
}

COMPLETES = "_DDX_COMPLETE"  # the variable with which a shell asks for completions

EPILOG = """\b
Example:
  ddx precompute laion.parquet
  ddx distill --method lcm --teacher sana-600m
  ddx sample --steps 1
"""


class LazyGroup(HelpfulGroup):
    """A group that imports a command when it is invoked, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a workflow."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import ddx.cli.<name> and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"ddx.cli.{cmd_name}").command
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ddx", message="%(prog)s %(version)s")
def group() -> None:
    """Distil text-to-image diffusion teachers into students that draw in one to four steps."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    quiet_libraries()
    leave(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Errors are printed; only --debug raises them."""
    debug = "--debug" in arguments
    if COMPLETES in os.environ:
        importlib.import_module("ddx.cli.completion")  # what bash hands over is read there
    try:
        code = group.main(arguments, prog_name="ddx", standalone_mode=False, obj=arguments)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as no_arguments:
        click.echo(no_arguments.ctx.get_help())
        return 0
    except (KeyboardInterrupt, click.Abort) as error:
        _report("interrupted", getattr(error.__cause__ or error, "hint", "run the same command again"))
        return 130
    except BrokenPipeError:
        # The reader of stdout has gone (`ddx list | head`): stop as quietly as other tools do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            raise
        if isinstance(error, click.UsageError) and error.ctx is None:
            error.ctx = _context(arguments)
        message, hint, code = _explain(error)
        if message is None:
            raise
        _report(message, hint)
        return code


def _explain(error: Exception) -> tuple[str | None, str, int]:
    """Return message, hint and exit code of an error; the message is None when it is a bug of ours."""
    if isinstance(error, DdxError):
        return str(error), error.hint or "`ddx doctor` checks the installation", error.exit_code
    if isinstance(error, click.UsageError):
        return *_explain_usage(error), 2
    if isinstance(error, click.ClickException):
        return error.format_message(), "`ddx --help` lists the commands", error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", cure_of(error), 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory", "try a smaller --batch-size or --resolution", 1
    return None, "", 1


def _explain_usage(error: click.UsageError) -> tuple[str, str]:
    command = error.ctx.command_path if error.ctx else "ddx"
    see_help = f"`{command} --help` shows its arguments and options"
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        flag = _as_typed(error.option_name, error.ctx)
        hint = flag_hint(command.removeprefix("ddx "), flag)
        if hint is None:
            near = near_flag(flag, error.ctx.command, error.ctx)
            options = (
                see_help if error.ctx.parent else "options stand behind a command: `ddx COMMAND --help` shows them"
            )
            hint = f"did you mean {near}?" if near else options
        return f"{command} has no option {flag}", hint
    if found := re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", error.message, re.DOTALL):
        meant = argument_hint(command.removeprefix("ddx "), found[1])
        return f"{command} does not take {found[1]!r}", meant or see_help
    if isinstance(error, click.MissingParameter) and error.param is not None and error.ctx is not None:
        choices = getattr(error.param.type, "choices", ())
        message = (
            f"{command} needs {error.param.make_metavar(error.ctx)}"
            if not choices
            else f"{command} needs one of {', '.join(choices)}"
        )
        return message, _example(error.ctx.command) or see_help
    if isinstance(error, click.BadParameter) and error.param is not None and isinstance(error.param.type, click.Choice):
        choices = tuple(str(choice) for choice in error.param.type.choices)
        given = error.message.split("'")[1] if error.message.count("'") >= 2 else ""
        near = nearest(given, choices)
        message = f"{given!r} is not one of {', '.join(choices)}"
        return message, f"did you mean `{command} {near}`?" if near else see_help
    return error.format_message().rstrip("."), see_help


def _context(arguments: list[str]) -> click.Context | None:
    """Return the context of the command on a line, for errors that click raises without a context."""
    if not arguments or arguments[0] not in COMMANDS:
        return None
    command = importlib.import_module(f"ddx.cli.{arguments[0]}").command
    return click.Context(command, parent=click.Context(group, info_name="ddx"), info_name=arguments[0])


def _example(command: click.Command) -> str | None:
    """Return the first example of a command's help, as a hint."""
    lines = (line.strip() for line in (command.epilog or "").splitlines())
    example = next((line for line in lines if line.startswith("ddx ")), None)
    return f"for example `{example}`" if example else None


def _as_typed(flag: str, context: click.Context) -> str:
    """Return the whole of a flag with one dash, of which click names the first letter."""
    typed = (word.partition("=")[0] for word in context.find_root().obj or ())
    return next((word for word in typed if word[0:2] == flag and word != flag), flag) if flag[1] != "-" else flag


def _report(message: str, hint: str) -> None:
    style: dict[str, Any] = {} if os.environ.get("NO_COLOR") else {"fg": "red", "bold": True}
    click.echo(f"{click.style('error:', **style)} {message}", err=True)
    click.echo(f"hint: {hint}", err=True)


if __name__ == "__main__":
    main()
