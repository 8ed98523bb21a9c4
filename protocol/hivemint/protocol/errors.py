"""The tree of errors. Each class says its `kind`, a word that programs may rely on.

HivemintError                 what happened, why, and the next step
├── BadInput                  the user's own input: a flag, a file, a number
│   ├── ConfigError           settings, network.toml, home folder
│   ├── ModelError            model folder, span, architecture
│   └── WalletError           keystore, password, key
├── ChainError                RPC unreachable, wrong chain id, a transaction that reverted
├── SwarmError                peers, links, missing blocks
│   ├── OverLimit             more than bid, limit or accounts of this wallet allow
│   ├── LinkClosed            the stream to a peer has ended
│   └── ProtocolError         a peer sent what the protocol does not allow
├── Refusal                   a node declined, with a code and a reason (see `swarm.messages.Code`)
├── ProofError                a signature, digest or hash that does not hold
└── SystemRefused             the operating system: disk, rights, descriptors, ports
"""

import errno
from typing import ClassVar

_CURES = {
    errno.ENOSPC: "free space, then try again",
    errno.EDQUOT: "free space, then try again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or free space",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close programs that hold many files open",
    errno.EACCES: "check its owner and rights",
    errno.EPERM: "check its owner and rights",
    errno.EROFS: "choose a place that can be written",
    errno.EADDRINUSE: "choose another port, or end the program that has it",
}


class HivemintError(Exception):
    """Root of every error raised on purpose. `str()` is one line for people: what, why, next step."""

    kind: ClassVar[str] = "other"
    """A word for programs. The exit code of `hivemint` follows it (`cli.terminal.failures`)."""

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        self.what, self.why, self.next_step = what, why, next_step
        parts = [
            what.rstrip(".") + ".",
            why and why.rstrip(".") + ".",
            next_step and next_step.rstrip(".") + ".",
        ]
        super().__init__(" ".join(part for part in parts if part))


class BadInput(HivemintError):
    """The user's own input cannot be used."""

    kind = "input"


class ConfigError(BadInput):
    """A setting, `network.toml` or the home folder."""

    kind = "settings"


class ModelError(BadInput):
    """A model folder, span or architecture."""

    kind = "model"


class WalletError(BadInput):
    """A keystore, a password or a key."""

    kind = "wallet"


class ChainError(HivemintError):
    """The chain cannot be reached, is another one, or refused a transaction."""

    kind = "chain"


class SwarmError(HivemintError):
    """Peers, links, missing blocks."""

    kind = "swarm"


class OverLimit(SwarmError):
    """The swarm could do it, but for more than the bid, the limit or the accounts of this wallet allow."""

    kind = "refused"


class LinkClosed(SwarmError):
    """The stream to a peer has ended."""


class ProtocolError(SwarmError):
    """A peer sent what the protocol does not allow."""


class ProofError(HivemintError):
    """A signature, a digest or a hash does not hold."""

    kind = "proof"


class SystemRefused(HivemintError):
    """The operating system refused something: no space, no right, a port that is taken."""

    kind = "system"


class Refusal(HivemintError):
    """A node declined. `code` is one of `hivemint.swarm.messages.Code`; `retry_after` in seconds, 0 = don't."""

    kind = "refused"

    def __init__(self, code: str, what: str, *, why: str = "", next_step: str = "", retry_after: float = 0.0) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.code, self.retry_after = code, retry_after


def of_the_system(error: OSError) -> SystemRefused:
    """What the operating system refused, in words."""
    what = f"{error.filename} cannot be used" if error.filename else "The operating system refused something"
    why = error.strerror or str(error) or type(error).__name__
    return SystemRefused(what, why=why, next_step=_CURES.get(error.errno or 0, "mend that, then try again"))
