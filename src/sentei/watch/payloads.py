"""One line of a log, in any of the schemas that we read, as what was asked.

- *plain*: `{"id", "time", "request": {"messages": […]}}`; `messages`, `prompt` or `text` may stand for `request`.
- *litellm*: the standard logging payload of LiteLLM (docs.litellm.ai/docs/proxy/logging_spec).
- *otel*: spans with the attributes of OpenTelemetry's GenAI conventions, one to a line as an SDK prints them, or an
  export of `resourceSpans`. The names are copied: the package that has them as constants calls all of them moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from sentei.data.formats import Misfit
from sentei.files import JSONError, loads

_CALLS = ("completion", "responses", "generate_content", "anthropic_messages")  # of LiteLLM, in `acompletion` and so on
_OPERATIONS = ("chat", "text_completion", "generate_content")  # gen_ai.operation.name of what asks a model
_ASKED = ("messages", "prompt", "text")  # keys of what is asked, in plain lines
_SYSTEM = ("system", "developer")
_REDACTED = "redacted-by-litellm"
_LATEST = 4_102_444_800.0  # the year 2100: a larger number of seconds is one of milli-, micro- or nanoseconds


@dataclass(frozen=True)
class Asked:
    """What a line says.

    Attributes:
        id: of the request, where there is one.
        time: seconds since 1970, where there is one.
        user: what the user says: the turns, one under the other.
        system: what the system prompt says.
        schema: in which the line is written.
    """

    id: str | None
    time: float | None
    user: str
    system: str
    schema: str


def asked(row: Mapping[str, Any]) -> Iterator[Asked | None]:
    """The requests of a line: one, or those of an export of spans; None for what asks no model to write.

    Raises:
        Misfit: it fits no schema, or a field is missing or of the wrong type.
    """
    inner = row.get("standard_logging_object")  # as LiteLLM's callbacks are given it
    row = inner if isinstance(inner, dict) else row
    if "resourceSpans" in row:
        for span in _exported(row):
            yield _span(span)
    elif "attributes" in row and not any(key in row for key in ("request", *_ASKED)):
        yield _span(row)
    elif "call_type" in row or ("startTime" in row and "messages" in row):
        yield _litellm(row)
    else:
        yield _plain(row)


def _plain(row: Mapping[str, Any]) -> Asked:
    request = row.get("request", row)
    if isinstance(request, str):
        request = {"text": request}
    if not isinstance(request, dict):
        raise Misfit(
            f"has a request that is {type(request).__name__}, expected an object with messages, prompt or text"
        )
    key = next((key for key in _ASKED if key in request), None)
    if key is None:
        where = "its request has" if "request" in row else "has"
        raise Misfit(
            f"{where} none of messages, prompt and text, and is no LiteLLM payload (call_type, startTime, messages) "
            "and no span (attributes with gen_ai.input.messages); "
            f"found: {', '.join(map(str, request))[:200] or 'nothing'}"
        )
    user, system = _said(request[key], key)
    return Asked(_id(row.get("id")), _time(row.get("time"), "time"), user, system, "plain")


def _litellm(row: Mapping[str, Any]) -> Asked | None:
    kind = str(row.get("call_type", "completion"))
    if not kind.removeprefix("a").startswith(_CALLS) and not kind.startswith(_CALLS):
        return None
    if "messages" not in row:
        raise Misfit(f"is a LiteLLM payload without messages; found: {', '.join(map(str, row))[:200]}")
    user, system = _said(row["messages"], "messages")
    if user.strip() == _REDACTED:
        raise Misfit(
            "is redacted: LiteLLM logged no text; log with turn_off_message_logging: false, or watch elsewhere"
        )
    return Asked(_id(row.get("id")), _time(row.get("startTime"), "startTime"), user, system, "litellm")


def _exported(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spans of an OTLP export in JSON."""
    for resource in _list(row, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            yield from _list(scope, "spans")


def _list(value: Any, key: str) -> list[Mapping[str, Any]]:
    found = value.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Misfit(f"has {key} that are no list of objects, as an export of spans has")
    return found


def _span(span: Mapping[str, Any]) -> Asked | None:
    attributes = _attributes(span.get("attributes", {}))
    if attributes.get("gen_ai.operation.name") not in _OPERATIONS:
        return None
    if "gen_ai.input.messages" not in attributes:
        raise Misfit(
            "is a span without gen_ai.input.messages: content is opt-in; record it with "
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=SPAN_ONLY"
        )
    user, system = _said(_structured(attributes["gen_ai.input.messages"]), "gen_ai.input.messages")
    if "gen_ai.system_instructions" in attributes:
        parts = _structured(attributes["gen_ai.system_instructions"])
        system = "\n".join(text for text in (_content(parts, "gen_ai.system_instructions"), system) if text)
    context = span["context"] if isinstance(span.get("context"), dict) else {}
    names = (("traceId", "trace_id"), ("spanId", "span_id"))
    ids = [found for a, b in names if (found := span.get(a) or span.get(b) or context.get(b))]
    start = next((key for key in ("startTimeUnixNano", "start_time_unix_nano", "start_time") if key in span), None)
    time = _time(span[start], start) if start else None
    return Asked(":".join(map(str, ids)) or None, time, user, system, "otel")


def _attributes(value: Any) -> dict[str, Any]:
    """Of a span: an object, or OTLP's list of `{"key", "value": {"stringValue": …}}`."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and "key" in item for item in value):
        return {str(item["key"]): _any_value(item.get("value")) for item in value}
    raise Misfit(f"has attributes that are {type(value).__name__}, expected an object or a list of key and value")


def _any_value(value: Any) -> Any:
    """A value as OTLP writes it in JSON."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    kind, inner = next(iter(value.items()))
    if kind == "arrayValue" and isinstance(inner, dict):
        return [_any_value(item) for item in inner.get("values", [])]
    if kind == "kvlistValue" and isinstance(inner, dict):
        return {str(i["key"]): _any_value(i.get("value")) for i in inner.get("values", []) if isinstance(i, dict)}
    return inner


def _structured(value: Any) -> Any:
    """Messages that a span holds as a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except JSONError as error:
        raise Misfit(f"has messages that are not JSON: {error}") from None


def _said(value: Any, key: str) -> tuple[str, str]:
    """What the user and the system prompt say.

    Raises:
        Misfit: there is no text of the user.
    """
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value) and "role" in value[0]:
        turns = [
            (str(turn.get("role")).lower(), _content(turn.get("parts", turn.get("content")), key)) for turn in value
        ]
        user = "\n".join(text for role, text in turns if role in ("user", "human") and text)
        system = "\n".join(text for role, text in turns if role in _SYSTEM and text)
    else:
        user, system = _content(value, key), ""
    if not user.strip():
        raise Misfit(f"has no text of a user in {key}")
    return user, system


def _content(value: Any, key: str) -> str:
    """Text, or the text among parts: pictures, calls of tools and their answers are left out."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _content(value.get("text", value.get("content")), key) if value.get("type", "text") in _TEXT else ""
    if isinstance(value, Sequence):
        return "\n".join(text for part in value if (text := _content(part, key)))
    raise Misfit(f"has {key} of type {type(value).__name__}, expected text or messages")


_TEXT = ("text", "input_text")


def _id(value: Any) -> str | None:
    return None if value is None else str(value)


def _time(value: Any, key: str) -> float | None:
    """Seconds since 1970 of ISO 8601 (UTC where it has no zone) or of a number of seconds, milli-, … nanoseconds."""
    if value is None:
        return None
    if isinstance(value, str) and not value.strip().isdigit():
        try:
            found = datetime.fromisoformat(value.strip().replace("Z", "+00:00").replace("z", "+00:00"))
            return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
        except (ValueError, OverflowError):
            raise Misfit(
                f"has a {key} that is no time: {value!r:.40}; expected ISO 8601 or seconds since 1970"
            ) from None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Misfit(f"has a {key} of type {type(value).__name__}, expected ISO 8601 or seconds since 1970")
    seconds = float(value)
    while seconds > _LATEST:
        seconds /= 1000
    if not 0 <= seconds <= _LATEST:
        raise Misfit(f"has a {key} that is no time: {value!r:.40}; expected ISO 8601 or seconds since 1970")
    return seconds
