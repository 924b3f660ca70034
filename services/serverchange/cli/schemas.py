"""Writes `schemas/generated/`: a JSON Schema for each event, the AsyncAPI and the OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from serverchange.cli.asyncapi import asyncapi_document, require_envelope
from serverchange.cli.event_catalogue import EventModel, example_record, short_type
from serverchange.events import ALL_EVENTS
from serverchange.state_api.app import openapi_document

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def generated() -> dict[str, str]:
    """Return file name → text of everything in `schemas/generated/`."""
    documents = {f"{short_type(event)}.schema.json": event_schema(event) for event in ALL_EVENTS}
    documents["asyncapi.json"] = asyncapi_document()
    documents["openapi.json"] = openapi_document()
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in documents.items()}


def event_schema(event: EventModel) -> dict[str, Any]:
    """Return the JSON Schema of one event, as it stands in a record's value."""
    schema = event.model_json_schema(by_alias=True)
    require_envelope(schema)
    return {
        "$schema": DIALECT,
        "$id": f"urn:serverchange:event:{short_type(event)}",
        **schema,
        "title": short_type(event),
        "examples": [example_record(event)],
    }


def write_schemas(folder: Path) -> list[Path]:
    """Write everything into `folder`, remove what is no longer made, and return the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = generated()
    for stale in folder.glob("*.json"):
        if stale.name not in texts:
            stale.unlink()
    written = []
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, "utf-8")
        written.append(path)
    return written
