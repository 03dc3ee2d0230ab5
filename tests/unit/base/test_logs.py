from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import ConfigError
from compute.base.logs import TRACE, JsonFormatter, LineFormatter, configure
from compute.base.options.shared import LoggingOptions
from compute.base.reasons import ProofReason
from tests.waiting import DEADLINE_SECONDS

NAMES = ("compute", "compute.some.module", "neurons", "__main__", "bittensor", "paramiko.transport", "some.library")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """``configure`` changes the process: put back what other tests rely on."""
    root = logging.getLogger()
    loggers = [entry for entry in root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    levels = [(logger, logger.level, list(logger.handlers)) for logger in [root, *loggers]]
    yield
    for handler in [handler for handler in root.handlers if handler.name == "compute.telemetry"]:
        handler.close()
    for entry in root.manager.loggerDict.values():
        if isinstance(entry, logging.Logger):
            entry.setLevel(logging.NOTSET)
    for logger, level, handlers in levels:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def lines_of(options: LoggingOptions) -> list[str]:
    """What remains of one record per level and logger."""
    stream = io.StringIO()
    configure(options, stream=stream)
    for name in NAMES:
        for level in (TRACE, logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s %s", name, logging.getLevelName(level))
    return [line.split(" ", 1)[1].split(maxsplit=1)[1] for line in stream.getvalue().splitlines()]


OURS = [name for name in NAMES if name.split(".")[0] in ("compute", "neurons", "__main__")]


@pytest.mark.parametrize(
    ("options", "ours", "sdk", "library"),
    [
        (LoggingOptions(), "INFO", "WARNING", "WARNING"),
        (LoggingOptions(info=True), "INFO", "INFO", "WARNING"),
        (LoggingOptions(debug=True), "DEBUG", "DEBUG", "WARNING"),
        (LoggingOptions(trace=True), "TRACE", "TRACE", "WARNING"),
        (LoggingOptions(trace=True, debug=True, info=True), "TRACE", "TRACE", "WARNING"),
        (LoggingOptions(debug=True, enable_third_party_loggers=True), "DEBUG", "DEBUG", "DEBUG"),
    ],
)
def test_levels(options: LoggingOptions, ours: str, sdk: str, library: str) -> None:
    order = ["TRACE", "DEBUG", "INFO", "WARNING"]
    lines = lines_of(options)
    expected = dict.fromkeys(OURS, ours) | {"bittensor": sdk, "some.library": library}
    for name, lowest in expected.items():
        heard = [line.split()[1] for line in lines if line.split()[0] == name]
        assert heard == order[order.index(lowest) :], name
    heard = [line.split()[1] for line in lines if line.startswith("paramiko")]
    assert heard == (["DEBUG", "INFO", "WARNING"] if options.enable_third_party_loggers else [])


def line(message: str, *args: object, name: str = "compute.x", level: int = logging.INFO, **extra: object) -> str:
    return LineFormatter().format(record(message, *args, name=name, level=level, **extra))


def record(message: str, *args: object, name: str, level: int, **extra: object) -> logging.LogRecord:
    made = logging.getLogger(name).makeRecord(name, level, "file.py", 1, message, args, None, extra=extra)
    made.created = 1_700_000_000.1239
    return made


def test_a_line_for_people() -> None:
    text = line("proof done", uid=3, reason=ProofReason.WRONG_ROW, seconds=4.25, hotkey=None)
    assert text == "2023-11-14T22:13:20.123Z INFO    proof done uid=3 reason=wrong_row seconds=4.25"
    assert line("lease %s ended", 7, level=logging.WARNING).endswith(" WARNING lease 7 ended")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        (True, "True"),
    ],
)
def test_values_that_need_quotes_get_them(value: object, shown: str) -> None:
    assert line("event", detail=value).endswith(f" event detail={shown}")


@given(message=st.text(max_size=40), value=st.text(max_size=40))
@settings(max_examples=100)
def test_no_text_of_a_peer_breaks_out_of_its_line(message: str, value: str) -> None:
    text = line("%s", message, detail=value)
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


@given(
    message=st.text(max_size=40),
    value=st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.booleans(), st.lists(st.integers())),
)
@settings(max_examples=100)
def test_every_json_line_is_strict_json(message: str, value: object) -> None:
    text = JsonFormatter().format(record("%s", message, name="compute.x", level=logging.INFO, detail=value))
    assert len(text.split("\n")) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    entry = json.loads(text, parse_constant=refuse)
    assert entry["event"] == message


def test_a_json_line() -> None:
    made = record(
        "proof done", name="compute.x", level=logging.ERROR, uid=3, reason=ProofReason.OK, level_="x", time="y"
    )
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "error",
        "logger": "compute.x",
        "event": "proof done",
        "uid": 3,
        "reason": "ok",
        "level_": "x",
    }
    odd = record("event", name="compute.x", level=logging.INFO, where=Path("/a"))
    assert json.loads(JsonFormatter().format(odd))["where"] == "/a"


@pytest.mark.parametrize("as_json", [False, True])
def test_tracebacks_are_kept(as_json: bool) -> None:
    stream = io.StringIO()
    configure(LoggingOptions(json=as_json), stream=stream)
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("compute.x").exception("it broke", extra={"uid": 3})
    text = stream.getvalue()
    if as_json:
        entry = json.loads(text)
        assert entry["exception"].startswith("Traceback")
        assert entry["exception"].endswith("ValueError: the reason")
    else:
        assert "ERROR   it broke uid=3\nTraceback" in text


def test_only_our_own_loggers_have_fields() -> None:
    """websockets and others hang whole objects on their records."""
    assert line("connected", name="websockets.client", websocket=object()).endswith(" connected")


def test_the_sdks_colours_are_left_out() -> None:
    assert line("[red]no[/red] [link]", name="bittensor").endswith(" no [link]")
    assert line("[red]no[/red]", name="compute.x").endswith(" [red]no[/red]")


def test_configuring_again_replaces_and_does_not_double() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(LoggingOptions(), stream=first)
    configure(LoggingOptions(), stream=second)
    logging.getLogger("compute.x").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_a_file_too(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure(LoggingOptions(record_log=True, logging_dir=str(tmp_path / "new")), program="miner", stream=stream)
    logging.getLogger("compute.x").info("hello")
    assert (tmp_path / "new" / "miner.log").read_text(encoding="utf-8") == stream.getvalue() != ""


def test_a_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write the log .*--logging\.logging_dir"):
        configure(LoggingOptions(record_log=True, logging_dir=str(tmp_path / "file" / "logs")))


SDK_SCRIPT = """
import logging
early = logging.getLogger("compute.early")
{before}
import bittensor
from compute.base.options.shared import LoggingOptions
from compute.base.logs import configure
configure(LoggingOptions(json=True))
early.info("early")
logging.getLogger("compute.late").info("late")
logging.getLogger("asyncio").error("Task exception was never retrieved")
bittensor.logging.warning("[red]from the sdk[/red]")
bittensor.logging.info("quiet")
"""
CONFIGURED_BEFORE = """
from compute.base.options.shared import LoggingOptions
from compute.base.logs import configure
configure(LoggingOptions())
"""


@pytest.mark.parametrize("before", ["", CONFIGURED_BEFORE])
def test_with_the_real_sdk_nothing_is_lost_doubled_or_on_stdout(before: str) -> None:
    """The SDK silences all loggers on import and prints to stdout; neither survives ``configure``."""
    done = subprocess.run(
        [sys.executable, "-c", SDK_SCRIPT.format(before=before)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert done.stdout == ""
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(entry["level"], entry["event"]) for entry in entries] == [
        ("info", "early"),
        ("info", "late"),
        ("error", "Task exception was never retrieved"),
        ("warning", "from the sdk"),
    ]


@pytest.mark.parametrize(("options", "shown"), [(LoggingOptions(), False), (LoggingOptions(debug=True), True)])
def test_what_peers_make_the_sdk_say_is_for_debugging(options: LoggingOptions, shown: bool) -> None:
    stream = io.StringIO()
    configure(options, stream=stream)
    logger = logging.getLogger("bittensor")
    for file, text in (("axon.py", "NotVerifiedException"), ("subtensor.py", "a chain error")):
        logger.handle(logging.LogRecord("bittensor", logging.ERROR, f"/sdk/{file}", 1, text, None, None))
    assert ("NotVerifiedException" in stream.getvalue()) is shown
    assert "a chain error" in stream.getvalue()
