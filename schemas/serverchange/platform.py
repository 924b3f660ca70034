"""The platform's answers, as its HTTP APIs give them; our own drop-in routes answer in the same shapes.

A lookup that fails, answers HTML, an `error` body, 404 or 429 is no information, never a change: whatever does not
fit these models is refused here, before any rule sees it. Sources: the platform's developer forum, thread 4877
(2016), and the public clients that read these routes.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serverchange.events import ClusterField, ServerField


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ServersAnswer(_Answer):
    """`GET /servers?channel=NAME`."""

    cluster: ClusterField
    servers: Annotated[tuple[ServerField, ...], Field(max_length=64, strict=False)]
    websockets_servers: Annotated[tuple[ServerField, ...], Field(max_length=64, strict=False)] = ()


class ChatPropertiesAnswer(_Answer):
    """`GET /api/channels/NAME/chat_properties`, the older route with other field names."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, validate_by_name=True, serialize_by_alias=True)

    room: Annotated[int, Field(alias="_id", ge=0)] = 0
    cluster: ClusterField
    eventchat: bool = False
    devchat: bool = False
    hide_chat_links: bool = False
    subsonly: bool = False
    game: str | None = None
    chat_servers: Annotated[tuple[ServerField, ...], Field(max_length=64, strict=False)]
    web_socket_servers: Annotated[tuple[ServerField, ...], Field(max_length=64, strict=False)] = ()


class Stream(_Answer):
    """One live stream."""

    channel: str
    started_at: str | None = None


class StreamsAnswer(_Answer):
    """`GET /streams?channel=a,b,c` (up to 100 names): those of the asked names that stream now."""

    streams: Annotated[tuple[Stream, ...], Field(max_length=1000, strict=False)]


class TokenAnswer(_Answer):
    """`GET /oauth2/validate`."""

    login: str
    client_id: str | None = None
    expires_in: int = 0
