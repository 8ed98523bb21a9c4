"""What can be asked over HTTP, as a page at /api: from the OpenAPI document, without any other server's scripts."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from hivemint.ledger.explorer.page import templates

_Schema = dict[str, Any]


def reference_router(document: Callable[[], _Schema]) -> APIRouter:
    """Route `/api`. `document` gives the OpenAPI document."""
    router, environment = APIRouter(include_in_schema=False), templates()

    @router.get("/api")
    def reference() -> Response:
        told = document()
        routes = [_route(path, methods["get"]) for path, methods in told["paths"].items() if "get" in methods]
        schemas = told.get("components", {}).get("schemas", {})
        kinds = [_kind(name, one) for name, one in sorted(schemas.items()) if "properties" in one]
        return HTMLResponse(environment.get_template("reference.html").render(routes=routes, kinds=kinds))

    return router


def _route(path: str, told: _Schema) -> _Schema:
    content = told["responses"]["200"].get("content", {}).get("application/json", {})
    asked = [one["name"] for one in told.get("parameters", ()) if one["in"] == "query"]
    return {"path": path, "summary": told.get("summary", ""), "asked": asked, "gives": _type(content.get("schema", {}))}


def _kind(name: str, told: _Schema) -> _Schema:
    fields = [(field, _type(one)) for field, one in told["properties"].items()]
    return {"name": name, "told": told.get("description", ""), "fields": fields}


def _type(schema: _Schema) -> str:
    """In a word or two: a kind's name, `list of Node`, `integer or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
