"""What a chain's RPC may answer: shapes, ranges, and that the answer belongs to the question.

An endpoint is a stranger. Every answer is looked at here, before anything decodes it, and cut down to the fields that
this project reads. What does not fit raises OddAnswer; the endpoint that gave it is then set aside.
"""

import re
from collections.abc import Callable
from typing import Any

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_MOST_LOGS = 100_000
_MOST_TRANSACTIONS = 100_000

Json = Any
Params = Any


class OddAnswer(ValueError):
    """An answer that no chain node gives to this question."""


def checked(method: str, params: Params, result: Json) -> Json:
    """`result` if `method` may answer it, with the fields that are read. Raises OddAnswer.

    Methods that nothing here asks pass as they are.
    """
    check = _CHECKS.get(method)
    try:
        return result if check is None else check(params, result)
    except OddAnswer as error:
        raise OddAnswer(f"{method}: {error}") from None


def quantity(value: Json, name: str = "the number", bits: int = 256) -> int:
    """A hexadecimal number below 2^bits. Raises OddAnswer."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise OddAnswer(f"{name} is no hexadecimal number")
    number = int(value, 16)
    if number >> bits:
        raise OddAnswer(f"{name} has more than {bits} bits")
    return number


def _is_quantity(bits: int) -> Callable[[Params, Json], Json]:
    def check(_: Params, result: Json) -> Json:
        quantity(result, bits=bits)
        return result

    return check


def _data(value: Json, name: str, size: int | None = None) -> str:
    if not isinstance(value, str) or not _DATA.fullmatch(value) or (size is not None and len(value) != 2 + 2 * size):
        raise OddAnswer(f"{name} is not {'bytes' if size is None else f'{size} bytes'} in hexadecimal")
    return value


def _is_data(_: Params, result: Json) -> Json:
    return _data(result, "the answer")


def _is_hash(_: Params, result: Json) -> Json:
    return _data(result, "the hash", 32)


def _table(value: Json, name: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise OddAnswer(f"{name} is no object")
    return value


def _list(value: Json, name: str, most: int) -> list[Json]:
    if not isinstance(value, list) or len(value) > most:
        raise OddAnswer(f"{name} is no list, or has more than {most} entries")
    return value


_ALWAYS_THERE = ("latest", "0x0")
"""Blocks that every chain has."""


def _block(params: Params, result: Json) -> Json:
    if result is None:
        if params[0] in _ALWAYS_THERE:
            raise OddAnswer(f"there is no block {params[0]}")
        return None
    told = _table(result, "the block")
    number = quantity(told.get("number"), "its number", 63)
    if str(params[0]).startswith("0x") and number != int(params[0], 16):
        raise OddAnswer(f"it is block {number}, asked was {int(params[0], 16)}")
    found = {name: told[name] for name in ("number", "timestamp")}
    quantity(told.get("timestamp"), "its time", 63)
    found |= {name: _data(told.get(name), f"its {name}", 32) for name in ("hash", "parentHash")}
    if told.get("baseFeePerGas") is not None:
        quantity(told["baseFeePerGas"], "its base fee", 128)
        found["baseFeePerGas"] = told["baseFeePerGas"]
    listed = _list(told.get("transactions", []), "its transactions", _MOST_TRANSACTIONS)
    return found | {"transactions": [_transaction_in_block(one) for one in listed]}


def _transaction_in_block(told: Json) -> Json:
    return _data(told, "a transaction's hash", 32) if isinstance(told, str) else _transaction([None], told)


def _transaction(params: Params, result: Json) -> Json:
    if result is None:
        return None
    told = _table(result, "the transaction")
    found = {"hash": _data(told.get("hash"), "its hash", 32), "from": _data(told.get("from"), "its sender", 20)}
    if params[0] is not None and found["hash"].lower() != params[0].lower():
        raise OddAnswer("it is another transaction than the one asked for")
    to = told.get("to")
    quantity(told.get("nonce"), "its nonce", 64)
    return found | {
        "nonce": told["nonce"],
        "to": None if to is None else _data(to, "its receiver", 20),
        "input": _data(told.get("input"), "its data"),
    }


def _receipt(params: Params, result: Json) -> Json:
    if result is None:
        return None
    told = _table(result, "the receipt")
    if _data(told.get("transactionHash"), "its transaction", 32).lower() != params[0].lower():
        raise OddAnswer("it is another transaction's")
    numbers = {"blockNumber": 63, "gasUsed": 63, "status": 1}
    if told.get("effectiveGasPrice") is not None:
        numbers["effectiveGasPrice"] = 128
    for name, bits in numbers.items():
        quantity(told.get(name), f"its {name}", bits)
    contract = told.get("contractAddress")
    block_hash = _data(told.get("blockHash"), "its block's hash", 32)
    logs = [_log(one) for one in _list(told.get("logs"), "its logs", _MOST_LOGS)]
    if any(log["blockHash"].lower() != block_hash.lower() for log in logs):
        raise OddAnswer("its logs are of another block")
    return {
        **{name: told[name] for name in (*numbers, "transactionHash")},
        "blockHash": block_hash,
        "contractAddress": None if contract is None else _data(contract, "its contract", 20),
        "logs": logs,
    }


def _log(told: Json) -> Json:
    told = _table(told, "a log")
    for name, bits in (("blockNumber", 63), ("logIndex", 32), ("transactionIndex", 32)):
        quantity(told.get(name), f"a log's {name}", bits)
    return {
        **{name: told[name] for name in ("blockNumber", "logIndex", "transactionIndex")},
        "address": _data(told.get("address"), "a log's address", 20),
        "topics": [_data(one, "a topic", 32) for one in _list(told.get("topics"), "its topics", 4)],
        "data": _data(told.get("data"), "a log's data"),
        "blockHash": _data(told.get("blockHash"), "a log's block", 32),
        "transactionHash": _data(told.get("transactionHash"), "a log's transaction", 32),
    }


def _logs(params: Params, result: Json) -> Json:
    """Only logs that were asked for, each once."""
    asked = params[0]
    found = [_log(one) for one in _list(result, "the answer", _MOST_LOGS)]
    addresses = asked.get("address", [])
    wanted = {one.lower() for one in ([addresses] if isinstance(addresses, str) else addresses)}
    for log in found:
        if wanted and log["address"].lower() not in wanted:
            raise OddAnswer(f"a log of {log['address']}, which was not asked for")
        if "blockHash" in asked and log["blockHash"].lower() != asked["blockHash"].lower():
            raise OddAnswer("a log of another block than the one asked for")
        if "fromBlock" in asked and not int(asked["fromBlock"], 16) <= int(log["blockNumber"], 16) <= int(
            asked["toBlock"], 16
        ):
            raise OddAnswer(f"a log of block {int(log['blockNumber'], 16)}, which is outside the range asked for")
    if len({(log["blockHash"].lower(), int(log["logIndex"], 16)) for log in found}) != len(found):
        raise OddAnswer("it names one log twice")
    return found


def _fee_history(_: Params, result: Json) -> Json:
    told = _table(result, "the fee history")
    rewards = [_list(one, "a block's rewards", 100) for one in _list(told.get("reward", []), "its rewards", 1024)]
    for reward in (one for block in rewards for one in block):
        quantity(reward, "a reward", 128)
    return {"reward": rewards}


_CHECKS: dict[str, Callable[[Params, Json], Json]] = {
    "eth_chainId": _is_quantity(63),
    "eth_blockNumber": _is_quantity(63),
    "eth_gasPrice": _is_quantity(128),
    "eth_maxPriorityFeePerGas": _is_quantity(128),
    "eth_getBalance": _is_quantity(256),
    "eth_getTransactionCount": _is_quantity(64),
    "eth_estimateGas": _is_quantity(63),
    "eth_getCode": _is_data,
    "eth_call": _is_data,
    "eth_sendRawTransaction": _is_hash,
    "eth_getBlockByNumber": _block,
    "eth_getTransactionByHash": _transaction,
    "eth_getTransactionReceipt": _receipt,
    "eth_getLogs": _logs,
    "eth_feeHistory": _fee_history,
}
