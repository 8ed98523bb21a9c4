"""What a lying node may change in a message to a client: the tensor, its row hashes, a signature, the count."""

import msgspec

from hivemint.swarm.messages import AnyMessage, StepReceipt, Tensor


def _flip(data: bytes | memoryview) -> bytes:
    return bytes(data[:-1]) + bytes([data[-1] ^ 1])


def changed_output(message: AnyMessage) -> AnyMessage:
    return Tensor(message.head, _flip(message.data)) if isinstance(message, Tensor) else message


def changed_rows(message: AnyMessage) -> AnyMessage:
    if isinstance(message, StepReceipt):
        return msgspec.structs.replace(message, rows=_flip(message.rows))
    return message


def changed_signature(message: AnyMessage) -> AnyMessage:
    if isinstance(message, StepReceipt):
        signed = msgspec.structs.replace(message.receipt, signature=_flip(message.receipt.signature))
        return msgspec.structs.replace(message, receipt=signed)
    return message


def more_tokens(message: AnyMessage) -> AnyMessage:
    if isinstance(message, StepReceipt):
        receipt = msgspec.structs.replace(message.receipt.receipt, tokens=message.receipt.receipt.tokens + 1)
        return msgspec.structs.replace(message, receipt=msgspec.structs.replace(message.receipt, receipt=receipt))
    return message
