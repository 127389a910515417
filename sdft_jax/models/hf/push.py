"""Publishing an exported model on the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import read_json, read_text
from sdft_jax.models.hf.hub import hub_name
from sdft_jax.models.hf.model_card import CARD, is_sealed
from sdft_jax.models.hf.writing import ADAPTER_CONFIG, exported_files, is_exported

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def push_to_hub(directory: str | os.PathLike[str], name: str, private: bool = False) -> str:
    """Upload an exported model to the Hugging Face Hub; return its address.

    The repository is created if it does not exist. Only the files of an export and its card are uploaded.
    Files of an older export that this one lacks are deleted from the repository, since a loader would read
    both; its history keeps them. A card that somebody edited there stays.

    Args:
        directory: the directory of a model or of adapters that this library wrote.
        name: the repository, `owner/name` or a name of the user's own.
        private: create a private repository, or require that it is one.

    Raises:
        SdftError: nobody is logged in, the directory is not an export, or the Hub refuses the upload.
    """
    require_login(name)
    return upload(directory, name, private)


def require_login(name: str) -> None:
    """Raise SdftError if `name` is not a name on the Hub, or the user is not logged in with a right to
    write.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SdftError(f"{name!r} is not a name on the Hub ({reason(error)}): give OWNER/NAME.") from None
    api = HfApi()
    try:
        user = api.whoami()
    except LocalTokenNotFoundError:
        raise SdftError(f"{name} cannot be uploaded, since nobody is logged in: {_LOGIN}.") from None
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise SdftError(_unreachable(api, name, error)) from None
        raise SdftError(f"{name} cannot be uploaded ({reason(error)}): {_LOGIN}.") from None
    except Exception as error:  # the client's transport raises exceptions of its own types
        raise SdftError(_unreachable(api, name, error)) from None
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise SdftError(f"{name} cannot be uploaded, since the token may only read: {_LOGIN}.")


def _unreachable(api: HfApi, name: str, error: Exception) -> str:
    return (
        f"{name} cannot be uploaded, since {api.endpoint} does not answer ({reason(error)}): try again "
        "later, and without HF_HUB_OFFLINE."
    )


def upload(directory: str | os.PathLike[str], name: str, private: bool = False) -> str:
    """Upload an exported model, as `push_to_hub`, without the early check of the login."""
    from huggingface_hub import HfApi

    directory = Path(directory)
    files = exported_files(directory)
    _refuse_local_base(directory)
    api = HfApi()
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise SdftError(f"{url} is public: make it private in its settings, or give another name.")
        remote = [file for file in api.list_repo_files(url.repo_id) if is_exported(file)]
        if CARD in remote and _is_edited(api, url.repo_id):
            remote.remove(CARD)
            files = [file for file in files if file != CARD]
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=directory,
            allow_patterns=[glob.escape(file) for file in files],
            delete_patterns=[glob.escape(file) for file in remote if file not in files],
            commit_message="Upload of a model by sdft_jax",
        )
    except SdftError:
        raise
    except Exception as error:  # the Hub's client raises exceptions of many types
        raise SdftError(
            f"{directory} is complete, but was not uploaded to {name} ({_reason(error)}): fix this, and run "
            f"the same command again, or sdft_jax.push_to_hub({str(directory)!r}, {name!r})."
        ) from error
    return str(url)


def _reason(error: Exception) -> str:
    """Return the reason of an error, with the sentence of the Hub if it sent one."""
    message = getattr(error, "server_message", None)
    return f"{reason(error)}: {message.rstrip('.')}" if message else reason(error)


def _refuse_local_base(directory: Path) -> None:
    """Raise SdftError for adapters whose base is a directory of this machine."""
    config = directory / ADAPTER_CONFIG
    if not config.exists():
        return
    base = read_json(config, "export the adapter again").get("base_model_name_or_path")
    if not isinstance(base, str) or hub_name(base) is None:
        raise SdftError(
            f"{config}: the base model {base!r} is not on the Hub, so that nobody else could load the "
            "adapters: export them with --base OWNER/NAME, or merge them with --merge."
        )


def _is_edited(api: HfApi, name: str) -> bool:
    """Return True if the card of a repository is not one that this library wrote."""
    with tempfile.TemporaryDirectory() as folder:
        return not is_sealed(read_text(api.hf_hub_download(name, CARD, local_dir=folder), "repair it"))
