"""HTTP answers of the replayed exchange, and what a fault makes of them."""

from dataclasses import dataclass, replace
from typing import Literal

from exchange.replay.faults import Fault
from exchange.replay.penalties import FIRST_BAN_S, Refusal
from exchange.replay.series import KlineRows
from exchange.replay.wire import dumps

__all__ = ["Answer", "commit", "error_answer", "refusal_answer"]

ADVICE = "Please use WebSocket Streams for live updates to avoid"
RESTRICTED = (
    "Service unavailable from a restricted location according to 'b. Eligibility' in "
    "https://www.binance.com/en/terms. Please contact customer service if you believe you received "
    "this message in error."
)
BUSY = "Server is currently overloaded with other requests. Please try again in a few minutes."
TROUBLE = {
    "451": (0, RESTRICTED),
    "500": (-1000, "An unknown error occurred while processing the request."),
    "503": (-1008, BUSY),
}
FIREWALL_PAGE = (
    b'<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN">\n<HTML><HEAD><TITLE>ERROR: The '
    b"request could not be satisfied</TITLE></HEAD><BODY><H1>403 ERROR</H1>Request blocked.</BODY></HTML>"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer and how it is delivered."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    page: KlineRows | None = None
    content_type: str = "application/json;charset=UTF-8"
    delivery: Literal["whole", "short", "reset", "drip"] = "whole"
    delay_s: float = 0.0


def error_answer(status: int, code: int, message: str, *headers: tuple[str, str]) -> Answer:
    """An error in Binance's JSON form."""
    return Answer(status, dumps({"code": code, "msg": message}), headers)


def refusal_answer(refusal: Refusal) -> Answer:
    """429 or 418 with Retry-After."""
    if refusal.banned_until_ms is None:
        used = f"Too much request weight used; current limit is {refusal.limit} request weight per 1 MINUTE."
        text = f"{used} {ADVICE} polling the API."
    else:
        used = f"Way too much request weight used; IP banned until {refusal.banned_until_ms}."
        text = f"{used} {ADVICE} bans."
    return error_answer(refusal.status, -1003, text, ("Retry-After", str(refusal.retry_after_s)))


def commit(fault: Fault, answer: Answer, *, limit: int, now_ms: int) -> Answer:
    """The answer with the fault in it. What fits no answer (a missing row of a ticker) leaves it whole."""
    match fault.kind:
        case "429":
            return refusal_answer(Refusal(429, fault.retry_after_s, None, limit))
        case "418":
            seconds = max(fault.retry_after_s, FIRST_BAN_S)
            return refusal_answer(Refusal(418, seconds, now_ms + seconds * 1000, limit))
        case "451" | "500" | "503":
            return error_answer(int(fault.kind), *TROUBLE[fault.kind])
        case "html403":
            return Answer(403, FIREWALL_PAGE, content_type="text/html")
        case "slow":
            return replace(answer, delay_s=fault.delay_s)
        case "drip":
            return replace(answer, delivery="drip", delay_s=fault.delay_s)
        case "short" | "reset":
            return replace(answer, delivery=fault.kind)
        case "truncated":
            return replace(answer, body=answer.body[: len(answer.body) // 2])
        case "duplicate" | "missing" | "unordered":
            return _with_rows_changed(fault, answer)
        case _:
            return answer  # the ws- kinds strike streams; stale is the server's, which knows the page before


def _with_rows_changed(fault: Fault, answer: Answer) -> Answer:
    if answer.page is None or not answer.page.count:
        return answer
    rows = answer.page.rows
    middle = len(rows) // 2
    if fault.kind == "unordered":
        changed = [*rows[middle:], *rows[:middle]]
    else:
        again = 2 if fault.kind == "duplicate" else 0
        changed = [*rows[:middle], *[rows[middle]] * again, *rows[middle + 1 :]]
    page = KlineRows(b",".join(changed), len(changed))
    return replace(answer, body=page.body, page=page)
