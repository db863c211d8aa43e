"""Uploading a folder to the Hugging Face Hub, through its own client and its own login."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from raymsa.errors import RaymsaError, UsageError

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def upload(folder: Path, names: Sequence[str], to: str, public: bool) -> str:
    """Upload the named files of a folder to the repository `owner/name`; returns its address.

    The repository is made if it must be, private unless `public`. Raises UsageError for a name that is none, without a
    login, and when the repository is public and `public` was not said; RaymsaError when the Hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    if not REPOSITORY.fullmatch(to):
        raise UsageError(f"--to {to}: is no repository; give owner/name")
    token = get_token()
    if token is None:
        raise UsageError("there is no login to the Hub here: `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    try:
        api.create_repo(to, private=not public, exist_ok=True)
        if not public and api.repo_info(to).private is False:
            raise UsageError(f"{to} is there already and is public; say --public to add to it, or name another")
        api.upload_folder(
            repo_id=to, folder_path=folder, allow_patterns=list(names), commit_message="Add a run of raymsa"
        )
    except UsageError:
        raise
    except Exception as error:  # the client's errors and those of its network library have no parent in common
        raise RaymsaError(f"{to}: not uploaded: {_line(error).replace(token, '***')}") from None
    return f"{api.endpoint}/{to}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
