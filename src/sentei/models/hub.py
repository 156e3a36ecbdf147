"""Snapshots of models from Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sentei.errors import InputError, one_line


def download(repo: str, wanted: Sequence[str], ignored: Sequence[str], refusal: str, mend: str = "") -> Path:
    """The directory of a repository's files, from the hub or its cache.

    Args:
        repo: its id.
        wanted: patterns of the files.
        ignored: patterns of those that are left out all the same.
        refusal: what an error begins with.
        mend: what it ends with.

    Raises:
        InputError: no such repository, no network, or nothing in the cache where that is all that may be used.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo, allow_patterns=[*wanted], ignore_patterns=[*ignored]))
    except (OSError, ValueError, HFValidationError) as error:  # the hub's own errors are OSErrors
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise InputError(f"{refusal}{offline}: {one_line(error)}{mend}") from error
