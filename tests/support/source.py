"""Python sources as trees, for the tests that read this repository."""

import ast
import gc


def parsed(text: str) -> ast.Module:
    """While it is parsed nothing is collected: what is freed may log an error of its own, a traceback that is written
    parses its lines, and CPython 3.11 cannot parse within a parse (SystemError, gh-106905).
    """
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()
