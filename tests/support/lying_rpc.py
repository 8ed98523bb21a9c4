"""An RPC endpoint that lies, shortens, lags, throttles and drops: a proxy before a real chain's node.

    with LyingRpc(devchain.url) as rpc:
        rpc.lie("eth_gasPrice", lambda params, result: hex(10**15))
        ... Chain.connect(rpc.url) ...
        rpc.honest()

It runs in threads of its own, so tests may be sync or async, and other processes can be pointed at it. Each rule sees
(method, params) and what the real chain answered, and answers instead. Rules run in the order in which they were made.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx

Change = Callable[[list[Any], Any], Any]
Rule = Callable[[str, list[Any], Any], Any]
Always = 10**9


class Refuse(Exception):
    """Raised by a rule: the answer is a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Status(Exception):
    """Raised by a rule: the answer is this HTTP status."""

    def __init__(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class Drop(Exception):
    """Raised by a rule: the connection ends without an answer."""


class LyingRpc:
    """Forwards to `upstream`; see the module. `asked` lists every (method, params) that came."""

    def __init__(self, upstream: str) -> None:
        self.asked: list[tuple[str, list[Any]]] = []
        self._rules: list[Rule] = []
        self._frozen: int | None = None
        self._http = httpx.Client(base_url=upstream, timeout=30, trust_env=False)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """With what looks like an API key in its path and query: no error may repeat it."""
        return f"http://127.0.0.1:{self._server.server_port}/v3/{SECRET}?key={SECRET}"

    @property
    def shown(self) -> str:
        """What may be told of it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    # Rules.

    def honest(self) -> None:
        """No rule any more."""
        self._rules, self._frozen = [], None

    def rule(self, rule: Rule) -> None:
        """The general form. It may raise Refuse, Status or Drop."""
        self._rules = [*self._rules, rule]

    def lie(self, method: str, change: Change, times: int = Always) -> None:
        """`change` the result of a method, so many times."""
        left = [times]

        def rule(asked: str, params: list[Any], result: Any) -> Any:
            if asked != method or left[0] <= 0:
                return result
            left[0] -= 1
            return change(params, result)

        self.rule(rule)

    def call(self, selector: bytes, change: Callable[[bytes], bytes], times: int = Always) -> None:
        """Change what calls of one contract function return: bytes of the ABI."""
        wanted = "0x" + selector.hex()

        def rule(params: list[Any], result: Any) -> Any:
            asked = params[0].get("data") or params[0].get("input") or ""
            return "0x" + change(bytes.fromhex(result[2:])).hex() if asked.startswith(wanted) else result

        self.lie("eth_call", rule, times)

    def refuse(self, method: str, code: int, message: str, times: int = Always) -> None:
        """Answer with a JSON-RPC error."""
        self.lie(method, _raising(Refuse(code, message)), times)

    def throttle(self, times: int = Always, *, retry_after: str = "0") -> None:
        """HTTP 429 for everything."""
        self._everything(Status(429, headers={"Retry-After": retry_after}), times)

    def drop(self, times: int = Always) -> None:
        """End connections without an answer."""
        self._everything(Drop(), times)

    def limit_logs(self, blocks: int, message: str = "query exceeds max block range") -> None:
        """Refuse `eth_getLogs` over more blocks than that."""

        def rule(params: list[Any], result: Any) -> Any:
            asked = params[0]
            if "blockHash" not in asked and int(asked["toBlock"], 16) - int(asked["fromBlock"], 16) >= blocks:
                raise Refuse(-32005, message)
            return result

        self.lie("eth_getLogs", rule)

    def freeze(self) -> None:
        """From now on know nothing after the present block."""
        self._frozen = int(self.forward("eth_blockNumber", [])["result"], 16)

    def _everything(self, error: Exception, times: int) -> None:
        left = [times]

        def rule(method: str, params: list[Any], result: Any) -> Any:
            if left[0] <= 0:
                return result
            left[0] -= 1
            raise error

        self.rule(rule)

    # Answering.

    def forward(self, method: str, params: list[Any]) -> Any:
        """The real chain's answer."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return self._http.post("", json=request).json()

    def answer(self, method: str, params: list[Any]) -> dict[str, Any]:
        """What this endpoint answers. Raises Status, Drop."""
        self.asked.append((method, params))
        told = self.forward(method, params) if self._frozen is None else self._as_frozen(method, params, self._frozen)
        try:
            result = told.get("result")
            for rule in self._rules:
                result = rule(method, params, result)
        except Refuse as error:
            return {"error": {"code": error.code, "message": error.message}}
        return {"error": told["error"]} if "error" in told and result is None else {"result": result}

    def _as_frozen(self, method: str, params: list[Any], block: int) -> Any:
        if method == "eth_blockNumber":
            return {"result": hex(block)}
        if method == "eth_getBlockByNumber" and params[0].startswith("0x") and int(params[0], 16) > block:
            return {"result": None}
        params = [hex(block) if one in ("latest", "pending") else one for one in params]
        told = self.forward(method, params)
        late = isinstance(told.get("result"), dict) and int(told["result"].get("blockNumber") or "0x0", 16) > block
        if method == "eth_getTransactionReceipt" and late:
            return {"result": None}
        if method == "eth_getLogs":
            return self._frozen_logs(params[0], told, block)
        return told

    def _frozen_logs(self, asked: dict[str, Any], told: Any, block: int) -> Any:
        if "blockHash" in asked:
            header = self.forward("eth_getBlockByHash", [asked["blockHash"], False])["result"]
            if header is None or int(header["number"], 16) > block:
                return {"error": {"code": -32000, "message": "unknown block"}}
        kept = [log for log in told.get("result") or [] if int(log["blockNumber"], 16) <= block]
        return {"result": kept}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


SECRET = "an-api-key-that-nobody-may-see"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""


def _raising(error: Exception) -> Change:
    def change(params: list[Any], result: Any) -> Any:
        raise error

    return change


def _handler(rpc: LyingRpc) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                told = rpc.answer(request["method"], request["params"])
            except Status as error:
                self._send(error.status, error.body, error.headers)
            except Drop:
                self.close_connection = True
            else:
                self._send(200, json.dumps({"jsonrpc": "2.0", "id": request["id"], **told}).encode(), {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def slow(seconds: float) -> Rule:
    """A rule: everything takes so long."""

    def rule(method: str, params: list[Any], result: Any) -> Any:
        time.sleep(seconds)
        return result

    return rule
