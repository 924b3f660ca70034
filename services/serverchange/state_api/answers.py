"""How an answer is sent: JSON made in one go, with its freshness, and an ETag that leaves the freshness out.

The tag is weak (RFC 9110, section 8.8.1): two answers that differ in `as_of` alone say the same of the channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request, Response
from pydantic_core import to_json

from serverchange.state_api.freshness import Fresh
from serverchange.state_api.parts import freshness_headers, freshness_members

JSON: Final = "application/json"

NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"headers": {"ETag": {"description": "Send it back as If-None-Match.", "schema": {"type": "string"}}}},
    304: {"description": "As the ETag in If-None-Match; the freshness is in the headers."},
}


def respond(request: Request, members: Mapping[str, Any], fresh: Fresh) -> Response:
    """Return the answer, or 304 where the asker has it already.

    The models of `views` describe the members; they are not validated again here, the tests hold them to the models.
    """
    body = to_json(members)
    etag = f'W/"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": etag, **freshness_headers(fresh)})
    whole = body[:-1] + b"," + to_json(freshness_members(fresh))[1:]
    return Response(whole, media_type=JSON, headers={"etag": etag})
