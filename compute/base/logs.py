"""Logging of the neurons: standard ``logging`` to stderr, one line per event.

Modules log with ``logging.getLogger(__name__)``; the message is the event and ``extra`` carries its fields::

    logger.info("proof done", extra={"uid": 3, "reason": reason, "seconds": 4.2})

    2026-01-31T12:00:00.000Z INFO    proof done uid=3 reason=ok seconds=4.2

Importing the SDK silences every logger that exists by then, sends its own lines to stdout and later changes neither.
So ``configure`` belongs after that import; calling it once more is harmless and repairs what came between.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from logging.handlers import QueueHandler, RotatingFileHandler
from pathlib import Path
from typing import TextIO

from compute.base.errors import ConfigError
from compute.base.options.shared import LoggingOptions

TRACE = 5
"""Below DEBUG; the SDK's number for it."""

_OURS = ("compute", "neurons", "__main__")
_SDK = ("bittensor", "async_substrate_interface")
_SDK_REQUEST_FILES = ("axon.py", "dendrite.py", "synapse.py")
# These repeat in tracebacks what a peer did, or write a line per request.
_NOISY = (
    "compute.base.ssh.transport",
    "paramiko",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
    "urllib3",
    "websockets",
)
_SILENCED_BY_SDK = logging.CRITICAL
_HANDLER = "compute.telemetry"
_FILE_BYTES = 25 << 20
_FILES_KEPT = 5
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SDK_COLOURS = re.compile(r"\[/?(?:red|blue|green|magenta|yellow|orange)\]")
_BARE_VALUE = re.compile(r"[^\s\"=\\]+")


def configure(options: LoggingOptions, *, program: str = "compute", stream: TextIO | None = None) -> None:
    """Set up logging for this process, replacing what an earlier call has set up.

    Args:
        program: name of the log file, where ``options.record_log`` asks for one.
        stream: where lines go; None is stderr.

    Raises:
        ConfigError: the log file cannot be written.
    """
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(old)
        old.close()
    formatter = JsonFormatter() if options.json else LineFormatter()
    for handler in _handlers(options, program, stream or sys.stderr):
        handler.name = _HANDLER
        if not (options.debug or options.trace):
            handler.addFilter(_is_no_peers_doing)
        handler.setFormatter(formatter)
        root.addHandler(handler)
    _set_levels(options)


def _is_no_peers_doing(record: logging.LogRecord) -> bool:
    """False for what the SDK calls an error at every request that it refuses and every peer that does not answer.

    Anybody could fill a disk with those; what matters of them is logged here with a reason code.
    """
    return not (record.name in _SDK and record.filename in _SDK_REQUEST_FILES)


def _handlers(options: LoggingOptions, program: str, stream: TextIO) -> Iterator[logging.Handler]:
    yield logging.StreamHandler(stream)
    if options.record_log:
        file = Path(options.logging_dir).expanduser() / f"{program}.log"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot write the log {file}: {error}. Name a directory with --logging.logging_dir"
            ) from error


def _set_levels(options: LoggingOptions) -> None:
    verbose = TRACE if options.trace else logging.DEBUG if options.debug else logging.INFO
    sdk = verbose if options.trace or options.debug or options.info else logging.WARNING
    libraries = verbose if options.enable_third_party_loggers else logging.WARNING
    for logger in [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]:
        if logger.level == _SILENCED_BY_SDK:
            logger.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(libraries)
    for name in _OURS:
        logging.getLogger(name).setLevel(verbose)
    for name in _NOISY:
        logging.getLogger(name).setLevel(verbose if options.enable_third_party_loggers else logging.CRITICAL + 1)
    for name in _SDK:
        logger = logging.getLogger(name)
        logger.setLevel(sdk)
        # It would write to stdout, which is for data.
        for handler in [handler for handler in logger.handlers if isinstance(handler, QueueHandler)]:
            logger.removeHandler(handler)


class LineFormatter(logging.Formatter):
    """Lines for people: UTC time, level, event, ``key=value`` fields. Whatever peers sent stays on the line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_bare(value)}" for key, value in _fields(record))
        line = f"{_time(record)} {record.levelname:<7} {_one_line(_message(record))}{fields}"
        exception = _exception(self, record)
        return f"{line}\n{exception}" if exception else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``logger``, ``event``, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _message(record),
        }
        for key, value in _fields(record):
            entry.setdefault(key, _jsonable(value))
        exception = _exception(self, record)
        if exception:
            entry["exception"] = exception
        return json.dumps(entry, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """What ``extra`` added. Libraries put objects of their own there, so only our own loggers count."""
    if record.name.partition(".")[0] in _OURS:
        for key, value in vars(record).items():
            if key not in _STANDARD_FIELDS and value is not None:
                yield key, value


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    return _SDK_COLOURS.sub("", message) if record.name.partition(".")[0] in _SDK else message


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _one_line(text: str) -> str:
    """Line breaks and terminal codes become visible escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _bare(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _BARE_VALUE.fullmatch(text) and text.isprintable() else json.dumps(text)


def _jsonable(value: object) -> object:
    """NaN and infinity are not JSON."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
