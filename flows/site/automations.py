"""What the Prefect server does by itself: end runs that fell silent, tell of runs that failed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict
from pydantic import SecretStr

__all__ = ["SILENCE_S", "ensure_automation", "ensure_webhook", "silence", "telling"]

SILENCE_S = 120  # four heartbeats

_WEBHOOK = "kronos-notify"
_TAG = "kronos"
_ENDS = ("Completed", "Failed", "TimedOut", "Cancelled", "Skipped", "Crashed")
_BAD = ("Failed", "TimedOut", "Crashed")
_ANY_RUN = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
_TEXT = (
    '{"text": {{ ("Kronos Nightly: " ~ flow_run.name ~ " " ~ flow_run.state.name | lower ~ ": "'
    ' ~ (flow_run.state.message or "no reason was given")'
    ' | replace("Flow run encountered an exception: ", "")) | tojson }},'
    ' "flow_run": {{ flow_run.name | tojson }}, "state": {{ flow_run.state.name | tojson }},'
    ' "url": {{ (flow_run | ui_url) | tojson }}}'
)


def silence(within_s: int = SILENCE_S) -> AutomationCore:
    """Mark as crashed a run whose process was killed together with its worker: nobody else would ever notice."""
    return AutomationCore(
        name="kronos: end silent runs",
        description="A worker that is killed leaves its runs RUNNING and their concurrency slots taken.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={f"prefect.flow-run.{name}" for name in ("heartbeat", *_ENDS)},
            match=_ANY_RUN,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name=None,
                force=False,
                message=f"Its process was not heard of for {within_s} s; the next run goes on from what it had done.",
            )
        ],
    )


def telling(webhook: UUID) -> AutomationCore:
    """Post the cause of every run that failed or crashed to a webhook, as `{"text": ...}`."""
    return AutomationCore(
        name="kronos: tell of a bad run",
        description="Posts one sentence about every run that failed or crashed.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{name}" for name in _BAD},
            match=_ANY_RUN,
            match_related=ResourceSpecification(
                {"prefect.resource.id": f"prefect.tag.{_TAG}", "prefect.resource.role": "tag"}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=_TEXT)],
    )


def ensure_automation(client: SyncPrefectClient, wanted: AutomationCore) -> bool:
    """Create the automation, or bring the one of its name up to date; whether there was anything to do."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return True
    if _content(found[0]) == _content(wanted):
        return False
    client.update_automation(found[0].id, wanted)
    return True


def ensure_webhook(url: str) -> tuple[UUID, bool]:
    """The block that holds the address, and whether it had to be written."""
    try:
        known: Any = Webhook.load(_WEBHOOK)
    except ValueError:  # Prefect's word for a block that does not exist
        known = None
    if known is not None and known.url.get_secret_value() == url:
        return known._block_document_id, False
    block = Webhook(url=SecretStr(url), headers=SecretDict({"content-type": "application/json"}))
    identifier: Any = block.save(_WEBHOOK, overwrite=True)
    return identifier, True


def _content(automation: AutomationCore) -> dict[str, object]:
    """What was decided, without what the server adds."""
    return automation.model_dump(include=set(AutomationCore.model_fields))
