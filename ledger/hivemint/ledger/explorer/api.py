"""The ledger over HTTP: JSON under /api, Prometheus under /metrics, the page at /. Reads only; loopback by default."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from hivemint.ledger.explorer import documents
from hivemint.ledger.explorer.documents import (
    Balance,
    Epoch,
    EscrowRow,
    NodeRow,
    OwnNode,
    OwnSession,
    Page,
    ServedModel,
    SettlementRow,
    Withdrawal,
)
from hivemint.ledger.explorer.metrics import registry
from hivemint.ledger.explorer.page import page_router
from hivemint.ledger.explorer.queries import Explorer
from hivemint.ledger.explorer.reference import reference_router
from hivemint.protocol.addresses import read_address
from hivemint.protocol.errors import HivemintError

MAX_LIMIT = 200
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
_STATIC = Path(__file__).parent / "pages" / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Query(ge=0, le=10**9)]


def create_app(explorer: Explorer, *, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The application. `hosts`: names by which it may be asked; others are refused (DNS rebinding)."""
    app = FastAPI(title="Hivemint ledger", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.middleware("http")
    async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(HivemintError)
    async def _unable(request: Request, error: HivemintError) -> Response:
        return JSONResponse({"detail": str(error)}, status_code=503)

    app.include_router(_api(explorer), prefix="/api")
    app.include_router(reference_router(app.openapi))
    app.include_router(page_router(explorer))
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    collected = registry(explorer)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(collected), media_type=CONTENT_TYPE_LATEST)

    return app


def _address(name: str) -> Callable[..., str | None]:
    """A query parameter that is an address in any case, or absent."""

    def parse(raw: Annotated[str | None, Query(alias=name, max_length=42)] = None) -> str | None:
        return None if raw is None else _checked(raw)

    return parse


def _checked(raw: str) -> str:
    found = read_address(raw)
    if found is None:
        raise HTTPException(
            422, f"{raw[:60]!r} is not an address; write 0x and 40 hex digits, mixed case with the checksum"
        )
    return found


def _mined(transaction: Annotated[str | None, Query(pattern="^0x[0-9a-fA-F]{64}$")] = None) -> bytes | None:
    return None if transaction is None else bytes.fromhex(transaction[2:])


NodeFilter = Annotated[str | None, Depends(_address("node"))]
TransactionFilter = Annotated[bytes | None, Depends(_mined)]
ClientFilter = Annotated[str | None, Depends(_address("client"))]


def _api(explorer: Explorer) -> APIRouter:
    api = APIRouter()

    @api.get("/status", summary="How far the index has come, and what all credits add up to.")
    def status() -> documents.IndexStatus:
        return explorer.status()

    @api.get("/balances", summary="Who holds credits, the largest first.")
    def balances(limit: Limit = 50, offset: Offset = 0) -> Page[Balance]:
        return explorer.balances(limit, offset)

    @api.get("/balances/{holder}", summary="One address's credits.")
    def balance(holder: str) -> Balance:
        return explorer.balance(_checked(holder))

    @api.get("/escrows", summary="Clients' deposits at nodes.")
    def escrows(client: ClientFilter, node: NodeFilter, limit: Limit = 50, offset: Offset = 0) -> Page[EscrowRow]:
        return explorer.escrows(limit, offset, client=client, node=node)

    @api.get("/nodes", summary="Registered nodes, by stake.")
    def nodes(limit: Limit = 50, offset: Offset = 0) -> Page[NodeRow]:
        return explorer.nodes(limit, offset)

    @api.get("/nodes/{node}", summary="One registered node, by its operator.")
    def node(node: str) -> NodeRow:
        found = explorer.nodes(1, 0, node=_checked(node)).items
        if not found:
            raise HTTPException(404, f"{node} is not registered")
        return found[0]

    @api.get("/settlements", summary="What nodes have collected, the newest first.")
    def settlements(
        node: NodeFilter, client: ClientFilter, mined: TransactionFilter, limit: Limit = 50, offset: Offset = 0
    ) -> Page[SettlementRow]:
        return explorer.settlements(limit, offset, node=node, client=client, transaction=mined)

    @api.get("/withdrawals", summary="What clients have taken back.")
    def withdrawals(node: NodeFilter, client: ClientFilter, limit: Limit = 50, offset: Offset = 0) -> Page[Withdrawal]:
        return explorer.withdrawals(limit, offset, node=node, client=client)

    @api.get("/epochs", summary="Donated work by epoch, the newest first.")
    def epochs(limit: Limit = 20, offset: Offset = 0) -> Page[Epoch]:
        return explorer.epochs(limit, offset)

    @api.get("/own", summary="The nodes whose journals this ledger reads: signed, countersigned, settled, minted.")
    def own() -> list[OwnNode]:
        return explorer.own_nodes()

    @api.get("/own/{node}/sessions", summary="The sessions of one of them.")
    def own_sessions(node: str, limit: Limit = 50, offset: Offset = 0) -> Page[OwnSession]:
        return explorer.own_sessions(_checked(node), limit, offset)

    @api.get("/swarm", summary="The models that nodes serve now, and their blocks.")
    async def swarm() -> list[ServedModel]:
        return await explorer.swarm()

    return api
