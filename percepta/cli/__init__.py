"""The command line: `percepta COMMAND ...`.

Exit codes: 0 done, 1 a failure of ours, 2 wrong use or bad input (one line), 3 stopped by a signal with a checkpoint written.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "recipes": "list the methods, a line each",
    "train": "train or finetune by a recipe: percepta train NAME",
    "sample": "draw images from a run or a diffusers pipeline",
    "translate": "images of one domain as images of the other, by a run of ladiffgan",
    "evaluate": "judge images, a run or a pipeline against real images: all metrics in one pass",
    "report": "one HTML page of one or several runs",
    "study": "run a table or figure of a paper, every cell at equal budget: percepta study list",
    "export": "write a run as a diffusers pipeline, or a translator as ONNX files",
    "convert": "turn a checkpoint of improved-diffusion, guided-diffusion or DiT into a pipeline",
    "cache": "encode a set of images into latents once: percepta cache latents",
    "probe": "look at an autoencoder's latents and decoder, or count what a step with LPL costs: percepta probe flops",
    "doctor": "versions, devices, precision, weights; with --data DIR the state of a set of images",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; the console script exits with what this returns."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(manual())
        return 0
    if args[0] in ("-V", "--version"):
        from percepta._version import __version__

        print(f"percepta {__version__}")
        return 0
    if args[0] not in COMMANDS:
        from percepta.cli.parse import nearest

        return fail(f"percepta has no command {args[0]!r}{nearest(args[0], COMMANDS)}; see `percepta --help`")
    return guarded(args)


def guarded(args: list[str]) -> int:
    """The command, with every expected failure as one line and its exit code."""
    from percepta.cli.parse import Usage

    try:
        command = importlib.import_module(f"percepta.cli.{args[0]}")
        return command.run(args[1:])
    except Usage as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output left: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if os.environ.get("PERCEPTA_DEBUG"):
            raise
        from percepta.training.checkpoint import CheckpointError

        return fail(
            f"percepta {args[0]}: {error}", 1 if isinstance(error.__cause__, OSError) and isinstance(error, CheckpointError) else 2
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        return fail(f"percepta {args[0]}: cannot write: {error}; make room and run it again (--resume goes on with a run)", 1)


def fail(message: str, code: int = 2) -> int:
    print(message, file=sys.stderr)
    return code


def manual() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "percepta: train, finetune and judge image generators in the spaces where people see",
        "",
        "  percepta COMMAND [ARGUMENTS]        percepta COMMAND --help for all flags, with defaults and units",
        "",
        *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        "Example: train on built-in images, then draw 16 new ones",
        "  percepta train ddpm --data shapes --size 16 --steps 500 --out runs/first",
        "  percepta sample runs/first --num 16 --out first.png",
        "",
        "Exit codes: 0 done, 1 a failure of ours, 2 wrong use or bad input, 3 stopped by a signal with a checkpoint written.",
        "Environment: PERCEPTA_WEIGHTS  folder with weights of feature networks; PERCEPTA_DEBUG=1  full traceback on errors.",
    ]
    return "\n".join(lines)
