from __future__ import annotations

import subprocess
import sys
import types

import pytest

import sentei


def test_importing_sentei_loads_nothing_heavy() -> None:
    code = "import sys, sentei; print([m for m in ('torch', 'transformers', 'pydantic', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("first", ["sentei.plan", "sentei.run", "sentei.measure"])
def test_functions_are_not_hidden_by_submodules(first: str) -> None:
    code = (
        f"import {first}, sentei; from sentei.plan import Plan; "
        "print(all(callable(getattr(sentei, n)) for n in ('plan', 'run', 'measure', 'cut')), sentei.Plan is Plan)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "True True"


def test_every_name_of_the_api_exists() -> None:
    for name in sentei.__all__:
        assert not isinstance(getattr(sentei, name), types.ModuleType), name
    assert set(sentei.__all__) <= set(dir(sentei))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="mesure"):
        _ = sentei.mesure  # type: ignore[attr-defined]
