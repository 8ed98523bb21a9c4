"""Statements as the driver takes them: compiled once, run many times.

SQLAlchemy's execution of a row costs several times what SQLite needs to write it, and the journal writes for every
token. Text, order of parameters and their types come from SQLAlchemy all the same, for each database.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.engine import CursorResult

Row = Mapping[str, Any]


class Prepared:
    """One statement. Rows may leave out columns that are nullable or have a plain default."""

    def __init__(self, engine: Engine, statement: Any, into: Table | None = None) -> None:
        """`into`: the table of an insert, whose columns a row is completed by."""
        columns = None if into is None else [column.name for column in into.columns]
        compiled = statement.compile(dialect=engine.dialect, column_keys=columns)
        self._text = str(compiled)
        self._fixed: dict[str, Any] = dict(compiled.params)
        if into is not None:
            self._fixed |= {
                column.name: getattr(column.default, "arg", None)
                for column in into.columns
                if column.name in self._fixed
            }
        self._names: Sequence[str] | None = compiled.positiontup if compiled.positional else None
        self._convert: dict[str, Callable[[Any], Any]] = {}
        for name, bound in compiled.binds.items():
            processor = bound.type.dialect_impl(engine.dialect).bind_processor(engine.dialect)
            if processor is not None:
                self._convert[name] = processor

    def run(self, connection: Connection, rows: Sequence[Row]) -> CursorResult[Any]:
        """Execute for each row, in the connection's transaction. Raises SQLAlchemy's DBAPIError."""
        parameters = [self._parameters(row) for row in rows]
        return connection.exec_driver_sql(self._text, parameters if len(parameters) > 1 else parameters[0])

    def _parameters(self, row: Row) -> Any:
        values = {**self._fixed, **row}
        for name, convert in self._convert.items():
            values[name] = convert(values[name])
        return values if self._names is None else tuple([values[name] for name in self._names])
