"""What the commands share: flags, the config with its overrides, and exit codes.

Exit codes: 0 done, 2 a mistake that the user can mend (one line on stderr, no traceback), 130 after Ctrl-C; a SIGTERM that
saved ends a training run with 143. Nothing here imports JAX, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags

from mmjax.data.files.source import is_file_source
from mmjax.interop.hub import ADAPTER, is_hub_id
from mmjax.parallel import processes
from mmjax.parallel.topology import quiet_libtpu
from mmjax.training.stage import Experiment
from mmjax.types.config import from_config, read_literal, suggest, to_dict
from mmjax.types.errors import UserError

FLAGS = flags.FLAGS


def run(main: Callable[[], None], *, config: bool = False) -> None:
    """Parses the flags, runs a command and ends the process with its exit code.

    Args:
      main: the command. It raises UserError for what the user can mend.
      config: the command reads `--config=FILE.py[:argument]` and its overrides `--config.path.to.key=value`.
    """

    def start(_: list[str]) -> None:
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries are quiet, unless asked with --verbosity=0
        quiet_libtpu()
        main()

    try:
        app.run(start, flags_parser=_parse_with_config if config else _parse)
    except UserError as error:
        processes.leave(_complain(str(error)))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        processes.leave(
            _complain(f"the disk is full ({error.filename or error}): free some space and give the same command again")
        )
    except KeyboardInterrupt:
        processes.leave(130)
    except Exception:
        if not processes.several():
            raise
        traceback.print_exc()
        processes.leave(1)


def experiment() -> Experiment:
    """The resolved config of the command line.

    Raises:
      UserError: see `mmjax.types.config.from_config`.
    """
    return from_config(Experiment, FLAGS.config, "--config")


def check_model(flag: str, directory: str) -> None:
    """Raises UserError unless a directory can be a run's workdir, a saved model or an adapter, or its name is a hub id.

    Args:
      flag: the flag that named it, for the message.
      directory: what it named.
    """
    if not is_hub_id(directory) and not any((Path(directory) / name).is_file() for name in ("config.json", ADAPTER)):
        what = "has no config.json: it is neither a run nor a saved model" if Path(directory).is_dir() else "no such directory"
        raise UserError(f"--{flag}={directory}: {what}; name the --workdir of a training run")


def check_weights(flag: str, path: str) -> None:
    """Raises UserError unless a path can be a model: as of `check_model`, or a pickled file of weights (.pth, .bin)."""
    if not Path(path).is_file():
        check_model(flag, path)


def named_parts(values: list[str]) -> dict[str, str]:
    """Where the parts are that a .pth file lacks, as --part=NAME=PATH says; UserError for one of another form."""
    if wrong := [value for value in values if not all(value.partition("="))]:
        raise UserError(f"--part={wrong[0]}: expected NAME=PATH, for example --part=llm=DIRECTORY")
    return dict(value.split("=", 1) for value in values)


def prepare_missing(experiment: Experiment) -> None:
    """Builds what the experiment reads from disk and names a builder for: data sets and pretrained parts that are missing."""
    sources = [source for stage in experiment.stages.values() for source in stage.data.mixture.values()]
    sources += [evaluation.source for evaluation in experiment.evaluations.values()]
    wanted = [(source.path, source.builder) for source in sources]
    wanted += [(part["source"], part["builder"]) for part in experiment.parts.values() if part.get("builder")]
    for path, builder in dict.fromkeys(wanted):
        if path and builder and not Path(path).exists() and not is_file_source(path):
            import data_pipelines

            print(f"preparing {path}", file=sys.stderr)
            data_pipelines.prepare(builder, path)


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = FLAGS(arguments)
    except flags.Error as error:
        raise UserError(f"{error}; --help lists the flags") from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value, and --help lists them")
    return rest


class _Literal(flags.ArgumentParser):
    """Reads any Python literal: which type a setting takes is for its dataclass to say."""

    def parse(self, argument: Any) -> Any:
        return read_literal(argument) if isinstance(argument, str) else argument


def _parse_with_config(arguments: list[str]) -> list[str]:
    """Loads the config, fills in every default, defines a flag for every override, and parses."""
    spec, arguments = _take_config(arguments)
    config = load_config(spec)
    filled = to_dict(from_config(Experiment, config, spec))
    filled["parts"] = config["parts"]  # free-form: its keys are the file's, nested as there
    config = ConfigDict(_referring(filled, config), type_safe=False, sort_keys=False)
    for kind in (int, float, list, tuple, type(None)):
        config_flags.register_flag_parser_for_type(kind, _Literal())
    for argument in arguments:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            _check_key(config, match[1])
    config_flags.DEFINE_config_dict("config", config, "The experiment.", sys_argv=arguments)
    return _parse(arguments)


def _referring(filled: dict[str, Any], config: Any) -> dict[str, Any]:
    """A filled config whose settings refer to one another as those of the file do, so that one flag sets them all."""
    entries = config.items(preserve_field_references=True) if isinstance(config, ConfigDict) else ()
    for key, value in entries:
        if isinstance(value, FieldReference):
            filled[key] = value
        elif isinstance(value, ConfigDict) and isinstance(filled[key], dict):
            _referring(filled[key], value)
    return filled


def _take_config(arguments: list[str]) -> tuple[str, list[str]]:
    """Splits `--config=SPEC` (or `--config SPEC`) from the other arguments."""
    for i, argument in enumerate(arguments):
        name, equals, spec = argument.partition("=")
        if name in ("--config", "-config"):
            end = i + 1 if equals else i + 2
            return spec or " ".join(arguments[i + 1 : end]), arguments[:i] + arguments[end:]
    if any(argument.lstrip("-") in ("help", "helpshort", "helpfull") for argument in arguments):
        _parse(arguments)  # prints the help and exits
    raise UserError("--config is missing: name a config file, for example --config=experiments/blip2/shapes.py")


def load_config(spec: str) -> ConfigDict:
    """Runs the `get_config` of a config file.

    Args:
      spec: "FILE.py" or "FILE.py:argument".

    Returns:
      What `get_config()` or `get_config(argument)` gives.

    Raises:
      UserError: no such file, or the file fails.
    """
    path, _, argument = spec.partition(":")
    if not Path(path).is_file():
        files = [str(file) for file in Path("experiments").rglob("*.py") if file.name != "__init__.py"]
        raise UserError(f"--config={spec}: there is no file {path!r}{suggest(path, files)}")
    scope: dict[str, Any] = {"__name__": "config", "__file__": path}
    try:
        exec(compile(Path(path).read_text(), path, "exec", dont_inherit=True), scope)
        if "get_config" not in scope:
            raise UserError(f"{path} defines no get_config()")
        return scope["get_config"](*filter(None, [argument]))
    except UserError as error:
        raise UserError(f"--config={spec}: {error}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"--config={spec}: {where}: {type(error).__name__}: {error}") from None


def _check_key(config: Any, path: str) -> None:
    """Raises UserError when a dotted path leads nowhere."""
    known = "--config"
    for key in path.split("."):
        if not isinstance(config, ConfigDict):
            raise UserError(f"--config.{path}: {known} is a single value, it has no key {key!r}")
        if key not in config:
            raise UserError(f"--config.{path}: {known} has no key {key!r}{suggest(key, config)}")
        config, known = config[key], f"{known}.{key}"
