"""The command line: one file per verb, thin. Data go to stdout, progress and logs to stderr."""

from __future__ import annotations

import os
import sys
import warnings

from sentei.errors import InputError, SenteiError

LONGEST = 1000  # characters of a message


def main() -> None:
    """Entry point of `sentei`.

    Exits with 0 (done), 1 (a fault of ours), 2 (bad input), 3 (quality missed), 4 (infeasible), 130 (Ctrl-C) or 143
    (SIGTERM).
    """
    # The libraries below print bars and advice of their own; what they must say comes as an exception. MKL adds up
    # in an order that hangs on free processors, unless told not to: a run would not give the same bits again. Threads
    # that spin while they wait crawl beside other work (161 instead of 317 tokens/s beside one busy process on two
    # cores), and are no faster alone.
    for name, value in {
        "MKL_CBWR": "AUTO,STRICT",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)
    args = [arg for arg in sys.argv[1:] if arg != "--debug"]  # understood before and after the verb
    debug = len(args) < len(sys.argv) - 1
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # between libraries, about names that we do not use
    from sentei.cli.stopping import exit_code, terminable

    try:
        with terminable():
            from sentei.cli.app import app

            app(args=args, prog_name="sentei")
    except KeyboardInterrupt as stop:  # before a verb began
        sys.exit(exit_code(stop))
    except Exception as error:
        if debug:
            raise
        code, message = explain(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)


def _line(text: str) -> str:
    """One line; of what a file made too long to read, both ends."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and one line for an exception."""
    if isinstance(error, SenteiError):
        return error.exit_code, _line(str(error))
    if "No space left on device" in str(error):  # safetensors has its own exception for it
        return InputError.exit_code, "the disk is full; free space or choose another --out"
    if isinstance(error, OSError) and error.filename is not None:  # of the file system, which the user can mend
        return InputError.exit_code, f"{error.filename}: {error.strerror or error}; mend that, or name another file"
    text = " ".join(str(error).split())[:500]
    return 1, f"internal: {type(error).__name__}: {text}; run it again with --debug and report the traceback"
