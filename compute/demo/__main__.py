"""``python -m compute.demo``: the stage, the story, and the exit status that tells the truth."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compute.base.console import Column, Output
from compute.base.contention import EXIT_BUSY, Control
from compute.base.errors import ComputeError, ConfigError, ProofError

if TYPE_CHECKING:
    from compute.demo.stage import Stage
    from compute.demo.story import Ending, Scene

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

COLUMNS = (
    Column("uid", right=True),
    Column("miner"),
    Column("claims", drop_order=2),
    Column("verdict", drop_order=1),
    Column("reason"),
    Column("TFLOPS", drop_order=3, right=True),
    Column("score", right=True),
    Column("weight on chain", right=True),
)


DESCRIPTION = """Play a whole subnet on this machine: a chain, a validator and miners as ordinary processes, one that
claims a GPU which it does not have and one that dies halfway; rent the best machine and run a command in it. Needs no
GPU, no keys, no network, and no Docker unless --docker asks for it. Ends with status 0 only if the chain holds what
the scores say and the cheats got nothing; with 75 if that took too long because other programs use this machine."""


def build_parser() -> argparse.ArgumentParser:
    """The command line. Heavy imports wait until the demo runs, so ``--help`` is quick."""
    parser = argparse.ArgumentParser(prog="python -m compute.demo", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of tables")
    parser.add_argument(
        "--miners", type=_miners, default=4, metavar="N", help="how many miners, 4 to 16 (default: %(default)s)"
    )
    parser.add_argument(
        "--docker",
        action="store_true",
        help="the honest miners rent out containers; needs a Docker engine with the image (docs/miner.md)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the final table to FILE as SVG too")
    parser.add_argument("--keep", action="store_true", help="keep everything running at the end, until Ctrl-C")
    parser.add_argument(
        "--block-time", type=float, default=0.5, metavar="SECONDS", help="time between blocks (default: %(default)s)"
    )
    return parser


def _miners(text: str) -> int:
    if not text.isdigit() or not 4 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 4 to 16")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demo of this command line and return its exit status."""
    return run(build_parser().parse_args(arguments))


def run(options: argparse.Namespace, control: Control | None = None) -> int:
    """Play the demo; returns 0 only if what the chain holds is what the scores say, and the cheats got nothing.

    ``EXIT_BUSY``, if it came too late and ``control`` says that other programs used this machine.
    """
    from compute.demo.cast import cast
    from compute.demo.stage import Stage

    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="compute-demo-"))
    output = Output(sys.stdout, sys.stderr, as_json=options.json)
    control = control or Control()
    stage = Stage(folder, cast(options.miners), block_seconds=options.block_time, docker=options.docker)
    try:
        try:
            ending = asyncio.run(_play(stage, output, keep=options.keep))
        finally:
            for number in _ENDINGS:
                # A second Ctrl-C from here on would leave processes that nobody ends.
                signal.signal(number, signal.SIG_IGN)
            stage.close()
    except ConfigError as error:
        output.error(str(error), reason=None, advice="Or leave out --docker: the demo does without containers.")
        shutil.rmtree(folder, ignore_errors=True)
        return EXIT_FAILED
    except ComputeError as error:
        output.error(str(error), reason=None, advice=f"The logs of all processes are in {folder}")
        if _may_be_disturbed(error) and control.is_busy():
            output.note(control.words())
            return EXIT_BUSY
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        shutil.rmtree(folder, ignore_errors=True)
        output.note("interrupted; every process has been ended")
        return EXIT_INTERRUPTED
    if options.picture is not None:
        caption = "\n".join(_closing_lines(ending))
        rows = [_cells(scene) for scene in ending.scenes]
        options.picture.write_text(output.picture(COLUMNS, rows, "make demo", caption), encoding="utf-8")
    if ending.problems:
        for problem in ending.problems:
            output.error(problem, reason=None, advice=f"The logs of all processes are in {folder}")
        return EXIT_FAILED
    shutil.rmtree(folder, ignore_errors=True)
    return EXIT_OK


def _may_be_disturbed(error: ComputeError) -> bool:
    """Whether a busy machine can be why: all have ended by now, but for what does not belong to the demo."""
    from compute.demo.story import TooLate
    from compute.proof.calibrate import DISTURBED

    return isinstance(error, TooLate) or (isinstance(error, ProofError) and error.reason in DISTURBED)


async def _play(stage: Stage, output: Output, *, keep: bool) -> Ending:
    from compute.demo.story import Story

    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def end(*_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    for number in _ENDINGS:
        # Not the loop's own, which go when it closes: a second Ctrl-C just then would skip the rest.
        signal.signal(number, end)
    with output.live_table(COLUMNS) as draw:
        story = Story(stage, lambda scenes, caption: draw([_cells(scene) for scene in scenes], caption))
        ending = await story.play()
    _print(ending, output)
    if keep:
        output.note(_invitation(stage))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    return ending


def _print(ending: Ending, output: Output) -> None:
    if output.as_json:
        output.data(ending.to_json())
        return
    output.table(COLUMNS, [_cells(scene) for scene in ending.scenes])
    for line in _closing_lines(ending):
        output.line(line)


def _closing_lines(ending: Ending) -> list[str]:
    rental = ending.rental
    return [
        f"rented uid {rental['uid']}, ran {rental['command']!r} there over SSH: {rental['output']}",
        f"the chain holds what the scores say; epoch {ending.epoch} has used it",
    ]


def _cells(scene: Scene) -> list[str]:
    row = scene.row
    if row is None:
        return ["", scene.actor.name, "", "", "", "", "", ""]
    return [
        str(row.uid),
        scene.actor.name,
        f"{row.claim_count} × {row.claim_gpu}" if row.claim_gpu else "–",
        f"{row.count} × {row.gpu}" if row.gpu else "–",
        row.reason.value,
        f"{row.tflops16:.3g}" if row.tflops16 is not None else "–",
        f"{row.score:.2f}",
        f"{scene.weight:.1%}",
    ]


def _invitation(stage: Stage) -> str:
    from compute.demo.stage import VALIDATOR

    endpoint, folder = stage.node.endpoint, stage.folder
    wallet = f"--wallet.path {folder}/wallets --wallet.name {VALIDATOR} --wallet.hotkey default"
    containers = ["  docker ps --filter label=compute.miner"] if stage.docker else []
    return "\n".join(
        (
            "Everything keeps running until Ctrl-C. In another terminal:",
            f"  python neurons/validator.py --status --database {stage.database_path(VALIDATOR)}",
            f"  python neurons/register.py offers --subtensor.chain_endpoint {endpoint} {wallet} "
            f"--database {stage.database_path(VALIDATOR)} --config.file {stage.config_path}",
            *containers,
            f"Logs and databases: {folder}",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
