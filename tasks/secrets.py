"""The Hub's token: out of the environment or a Prefect Secret block, straight to huggingface_hub."""

from __future__ import annotations

import os
from typing import cast

from prefect.blocks.system import Secret

from kronos_model.publish_config import PublishConfig

__all__ = ["hub_token"]


def hub_token(config: PublishConfig | None = None) -> str:
    """HF_TOKEN, else what the Secret block holds; empty where there is neither.

    A task calls this itself: the token is nobody's parameter or result, so that no server stores it.
    """
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    name = (config or PublishConfig()).token_block
    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError:  # Prefect's word for a block that is not there
        return ""
    return str(block.get()).strip()
