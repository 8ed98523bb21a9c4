"""The RPC endpoints of one chain: a list with health, behind web3 as one provider.

A request goes to the first endpoint that is not set aside. One that cannot be reached, asks to wait, or answers what
no chain node answers is set aside, for longer each time, and the next is asked. So is one that is another chain (its
id, or the hash of its first block) or lags far behind the others. If none is left, ChainError says why, for each.

Of an endpoint's URL only scheme and host are ever shown: path, query and user name may be secrets.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import structlog
from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession, ClientTimeout
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from hivemint.contracts.answers import OddAnswer, checked, quantity
from hivemint.protocol.errors import ChainError
from hivemint.protocol.text import shown_url

log = structlog.get_logger(__name__)

# py_ecc, which comes in with web3, sets 100,000: nested input of a stranger then overflows the stack and ends the
# process instead of raising RecursionError, in every decoder of the process.
sys.setrecursionlimit(1000)

MAX_ANSWER = 32 << 20
"""Bytes of one answer; more is not read."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0
_SLOW_PAUSE = 2.0  # after an answer that did not come in time: asking again at once would only wait again
_ODD_PAUSE = 0.5
_WRONG_PAUSE = 30.0  # another chain, or far behind: that does not pass in a moment
_PATIENCE = 1.0  # seconds that one request waits for endpoints that are set aside
_LOOK_EVERY = 30.0  # seconds between two looks at the heads, where there are several endpoints
_FAR_BEHIND = 120  # seconds of block time behind another endpoint
_MISSING = ("header not found", "unknown block", "block not found", "missing trie node", "could not find block")
_NOTHING = {
    "eth_getTransactionReceipt": None,
    "eth_getTransactionByHash": None,
    "eth_getBlockByNumber": None,
    "eth_getCode": "0x",
    "eth_call": "0x",
}
"""What an endpoint answers that has not what was asked for: a block, a transaction, a contract's code."""
_BUSY = ("rate limit", "too many requests", "request limit", "throughput", "capacity", "-32029")


class Throttled(ChainError):
    """Every endpoint asks for fewer requests. `retry_after` in seconds."""

    def __init__(self, what: str, *, why: str = "", next_step: str = "", retry_after: float = 1.0) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why an endpoint is set aside. `pause`: at least so many seconds."""

    what: str
    why: str
    next_step: str = "check rpc_url in network.toml, and that the chain runs"
    pause: float = 0.0
    busy: bool = False

    def error(self) -> ChainError:
        if self.busy:
            return Throttled(self.what, why=self.why, next_step=self.next_step, retry_after=self.pause)
        return ChainError(self.what, why=self.why, next_step=self.next_step)


class _FaultyError(Exception):
    def __init__(self, fault: _Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


@dataclass(slots=True)
class Expected:
    """What all endpoints of a chain must agree on; None until the first one has said it."""

    chain_id: int | None = None
    genesis: str | None = None


class Endpoint:
    """One URL, its connections, and its standing."""

    def __init__(self, url: str, timeout: float) -> None:
        self.shown = shown_url(url)
        self.fault: _Fault | None = None
        """Why it is set aside, or was last; None while all is well."""
        self.free_at = 0.0
        self.head: tuple[int, int] | None = None
        """Number and time of its newest block, as of the last look."""
        self.looked_at: float | None = None
        self.looking = asyncio.Lock()
        self._url, self._timeout = url, timeout
        self._failures = 0
        self._session: ClientSession | None = None
        self._closed = False

    async def ask(self, method: str, params: Any) -> dict[str, Any]:
        """One JSON-RPC call: `{"result": ...}` as checked, or `{"error": ...}`. Raises _FaultyError."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        told = _decoded(self.shown, await self._post(json.dumps(request, default=_plain).encode()))
        if told.get("error") is not None:
            return {"jsonrpc": "2.0", "id": 1, "error": self._refusal(told["error"])}
        try:
            result = checked(method, params, told.get("result"))
        except OddAnswer as error:
            raise _FaultyError(_odd(self.shown, str(error))) from None
        return {"jsonrpc": "2.0", "id": 1, "result": result}

    async def result(self, method: str, params: Any) -> Any:
        """The same where only a result will do."""
        told = await self.ask(method, params)
        if "error" in told:
            raise _FaultyError(_odd(self.shown, f"{method} was refused: {told['error']['message']}"))
        return told["result"]

    def failed(self, fault: _Fault, *, told: bool) -> None:
        """Set it aside, for twice as long as the last time. `told`: its caller hears of the fault anyway.

        Requests that were under way together and fail together are one failure: each by itself would double the time,
        and a chain that was away for seconds would be set aside for minutes.
        """
        if not told and (self.fault is None or self.fault.why != fault.why):
            log.warning("a chain endpoint is set aside", endpoint=self.shown, reason=fault.why)
        self.fault, self.looked_at = fault, None
        now = time.monotonic()
        if now < self.free_at:
            self.free_at = max(self.free_at, now + min(fault.pause, _LONGEST_PAUSE))
            return
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 20))
        self.free_at = now + max(pause, min(fault.pause, _LONGEST_PAUSE))
        self._failures += 1

    def worked(self) -> None:
        if self.fault is not None:
            log.info("a chain endpoint answers again", endpoint=self.shown)
        self.fault, self._failures = None, 0

    async def close(self) -> None:
        """A request that comes later opens nothing anew."""
        session, self._session, self._closed = self._session, None, True
        if session is not None:
            await session.close()

    async def _post(self, body: bytes) -> bytes:
        if self._closed:
            raise _FaultyError(_unreachable(self.shown, "it was closed by this process"))
        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=self._timeout))
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                return await self._read(response)
        except TimeoutError:
            raise _FaultyError(_unreachable(self.shown, "no answer in time", _SLOW_PAUSE)) from None
        except ClientConnectorError as error:
            why = error.os_error.strerror or "no connection"
            raise _FaultyError(_unreachable(self.shown, why)) from None
        except (ClientError, OSError) as error:  # their texts hold the whole URL
            raise _FaultyError(_unreachable(self.shown, type(error).__name__)) from None

    async def _read(self, response: ClientResponse) -> bytes:
        if response.status == 429:
            raise _FaultyError(_busy(self.shown, "HTTP 429", _seconds(response.headers.get("Retry-After"))))
        content = bytearray()
        async for part in response.content.iter_chunked(1 << 16):
            content += part
            if len(content) > MAX_ANSWER:
                raise _FaultyError(_odd(self.shown, f"more than {MAX_ANSWER >> 20} MiB"))
        if response.status != 200 and not content.lstrip().startswith(b"{"):  # some tell JSON-RPC errors by status 4xx
            raise _FaultyError(_unreachable(self.shown, f"HTTP status {response.status}"))
        return bytes(content)

    def _refusal(self, told: Any) -> dict[str, Any]:
        """A JSON-RPC error, bounded, without the URL's secrets. Raises _FaultyError if it asks for fewer requests."""
        table = told if isinstance(told, dict) else {"message": str(told)}
        message = "".join(letter if letter.isprintable() else " " for letter in str(table.get("message", ""))[:1000])
        for secret in _secrets(self._url):
            message = message.replace(secret, "...")
        code = table.get("code")
        code = code if isinstance(code, int) else -32000
        words = message.lower()
        if code in (429, -32029) or (any(text in words for text in _BUSY) and "block" not in words):
            raise _FaultyError(_busy(self.shown, message[:200], 0.0))
        data = table.get("data")
        return {"code": code, "message": message} | ({"data": data} if isinstance(data, str | dict) else {})


class Endpoints(AsyncJSONBaseProvider):
    """The provider that web3 talks to. `chain_id` None: whatever chain the first endpoint is."""

    def __init__(self, endpoints: Sequence[Endpoint], expected: Expected) -> None:
        super().__init__()
        self.endpoints, self.expected = tuple(endpoints), expected
        self._everyone = self.endpoints

    @classmethod
    def at(cls, urls: Sequence[str], chain_id: int | None, timeout: float) -> "Endpoints":
        return cls([Endpoint(url, timeout) for url in urls], Expected(chain_id))

    def only(self, endpoint: Endpoint) -> "Endpoints":
        """A provider of one of these endpoints; health is shared."""
        alone = Endpoints([endpoint], self.expected)
        alone._everyone = self._everyone
        return alone

    @property
    def shown(self) -> str:
        return ", ".join(one.shown for one in self.endpoints)

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Raises ChainError if no endpoint can be asked."""
        if method == "eth_chainId" and self.expected.genesis is not None:
            return {"jsonrpc": "2.0", "id": 1, "result": hex(self.expected.chain_id or 0)}
        if method == "eth_sendRawTransaction" and len(self.endpoints) > 1:
            return await self._send_to_all(params)
        patience = _PATIENCE
        while True:
            answer = await self._first_answer(method, params)
            if answer is not None:
                return answer
            wait = max(0.0, min(one.free_at for one in self.endpoints) - time.monotonic())
            if wait > patience:
                raise self._nobody()
            patience -= wait
            await asyncio.sleep(wait)

    async def _first_answer(self, method: str, params: Any) -> RPCResponse | None:
        """Of the first endpoint that has one. What one of them says that it lacks is the others' to better."""
        lacking = None
        for endpoint in self._free():
            told = await self._ask(endpoint, method, params)
            if told is not None and _lacks(told, method):
                lacking = lacking or told
            elif told is not None:
                return told
        return lacking

    async def _send_to_all(self, params: Any) -> RPCResponse:
        """A transaction goes to every endpoint: one that keeps it to itself stops nothing."""
        asked = [self._ask(endpoint, "eth_sendRawTransaction", params) for endpoint in self._free()]
        answers = [one for one in await asyncio.gather(*asked) if one is not None]
        if not answers:
            raise self._nobody()
        return next((one for one in answers if "error" not in one), answers[0])

    async def _ask(self, endpoint: Endpoint, method: str, params: Any) -> RPCResponse | None:
        """Its answer; None if it has just been set aside."""
        try:
            await self._look(endpoint)
            told = await endpoint.ask(method, params)
        except _FaultyError as error:
            endpoint.failed(error.fault, told=len(self._everyone) == 1)
            return None
        endpoint.worked()
        return told  # type: ignore[return-value]  # web3's TypedDict, by its fields

    def _free(self) -> list[Endpoint]:
        now = time.monotonic()
        return [one for one in self.endpoints if one.free_at <= now]

    def _nobody(self) -> ChainError:
        faults = [one.fault for one in self.endpoints if one.fault is not None]
        if len(self.endpoints) == 1 and faults:
            return faults[0].error()
        why = "; ".join(f"{one.shown}: {one.fault.why}" for one in self.endpoints if one.fault is not None)
        what, next_step = "None of the chain's endpoints can be used", "check rpc_url in network.toml"
        if faults and all(fault.busy for fault in faults):
            return Throttled(what, why=why, next_step=next_step, retry_after=min(fault.pause for fault in faults))
        return ChainError(what, why=why, next_step=next_step)

    # Is it the chain that we mean, and as far as the others?

    async def _look(self, endpoint: Endpoint) -> None:
        """Before the first use, after a fault, and now and then where there are several. Raises _FaultyError."""
        async with endpoint.looking:
            now, last = time.monotonic(), endpoint.looked_at
            if last is not None and (len(self._everyone) == 1 or now - last < _LOOK_EVERY):
                return
            await self._identify(endpoint)
            if len(self._everyone) > 1:
                await self._compare(endpoint)
            endpoint.looked_at = now

    async def _identify(self, endpoint: Endpoint) -> None:
        chain_id = quantity(await endpoint.result("eth_chainId", []))
        if self.expected.chain_id not in (None, chain_id):
            raise _FaultyError(_wrong(endpoint.shown, f"its id is {chain_id}, expected {self.expected.chain_id}"))
        block = await endpoint.result("eth_getBlockByNumber", ["0x0", False])
        genesis = block["hash"].lower()
        if self.expected.genesis not in (None, genesis):
            why = f"its first block is {genesis[:12]}..., not {str(self.expected.genesis)[:12]}... as before"
            raise _FaultyError(_wrong(endpoint.shown, why))
        self.expected.chain_id, self.expected.genesis = chain_id, genesis

    async def _compare(self, endpoint: Endpoint) -> None:
        block = await endpoint.result("eth_getBlockByNumber", ["latest", False])
        number, when = endpoint.head = quantity(block["number"]), quantity(block["timestamp"])
        others = [one.head for one in self._everyone if one is not endpoint and one.fault is None and one.head]
        best = max(others, default=endpoint.head)
        # A head that is ahead of the clock proves nothing: else one liar could have all others set aside.
        if best[0] > number and when + _FAR_BEHIND < best[1] <= time.time() + _FAR_BEHIND:
            raise _FaultyError(_wrong(endpoint.shown, f"it is at block {number}, another endpoint at {best[0]}"))

    async def is_connected(self, show_traceback: bool = False) -> bool:
        return any(one.fault is None for one in self.endpoints)

    async def disconnect(self) -> None:
        await asyncio.gather(*(one.close() for one in self.endpoints))


def _decoded(shown: str, content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        raise _FaultyError(_odd(shown, "no JSON")) from None
    if not isinstance(told, dict) or not told.keys() & {"result", "error"}:
        raise _FaultyError(_odd(shown, "no JSON-RPC answer"))
    return told


def _lacks(told: RPCResponse, method: str) -> bool:
    """Whether the answer is that there is nothing: no such block, transaction or contract."""
    error = told.get("error")
    if isinstance(error, dict):
        return any(text in error["message"].lower() for text in _MISSING)
    return method in _NOTHING and told.get("result") == _NOTHING[method]


def _plain(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return "0x" + value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _seconds(header: str | None) -> float:
    """Of `Retry-After`; a date, or nothing, is a second."""
    return min(float(header), _LONGEST_PAUSE) if header and header.strip().isdecimal() else 1.0


def _secrets(url: str) -> list[str]:
    """Parts of a URL that a provider might repeat in its error's text."""
    parts = urlsplit(url)
    values = [url, parts.username, parts.password, parts.query, *parts.path.split("/")]
    values += [value for _, value in parse_qsl(parts.query)]
    return [value for value in values if value and len(value) >= 6]


def _unreachable(shown: str, why: str, pause: float = 0.0) -> _Fault:
    return _Fault(f"The chain at {shown} cannot be reached", why, pause=pause)


def _busy(shown: str, why: str, pause: float) -> _Fault:
    what = f"The chain at {shown} asks for fewer requests"
    return _Fault(what, why, "wait, or name another endpoint in network.toml", pause=max(pause, 0.5), busy=True)


def _odd(shown: str, why: str) -> _Fault:
    what = f"The chain at {shown} answered what no chain node answers"
    return _Fault(what, why, "check rpc_url in network.toml", pause=_ODD_PAUSE)


def _wrong(shown: str, why: str) -> _Fault:
    return _Fault(f"{shown} is the wrong chain", why, "mend rpc_url or chain_id in network.toml", pause=_WRONG_PAUSE)
