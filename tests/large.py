"""A model that is larger than a memory budget, and verbs in processes whose memory is looked at."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 4}
WRITER = Path(__file__).parents[1] / "benchmarks" / "random_model.py"


def write_large(directory: Path, blocks: int) -> int:
    """A random bf16 Llama with a shard per block and a word-level tokenizer; gives its bytes."""
    spec = importlib.util.spec_from_file_location("random_model", WRITER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: int = module.write_model(
        directory, **SIZES, num_hidden_layers=blocks, vocab_size=128, tie_word_embeddings=True
    )
    return written


def sentei(*arguments: object) -> tuple[int, str, int]:
    """Runs the command line in a process of its own: exit code, stderr, and the most memory that it held."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'sentei', *sys.argv[1:]], stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr, int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
