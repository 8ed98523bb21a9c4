"""Where settings come from: flags > `HIVEMINT_*` in the environment > a table of `config.toml` > defaults.

The file lies in `$HIVEMINT_HOME`; it has one table for each kind of process, and nothing else.
"""

import tomllib
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import Home

TABLES = ("client", "node")
_file: ContextVar[dict[str, Any]] = ContextVar("settings of the file")
"""What `load` has read: pydantic builds the sources by the class, which knows no home."""


class Settings(BaseSettings):
    """Those of one table. A field's docstring is its meaning, as `hivemint config show` tells it."""

    model_config = SettingsConfigDict(
        env_prefix="HIVEMINT_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )
    TABLE: ClassVar[str]

    @classmethod
    def load(cls, home: Home | None = None, **flags: Any) -> Self:
        """Flags that are None are left to the other sources. Raises ConfigError that names the setting."""
        token = _file.set(read_table(home or Home.open(), cls.TABLE))
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            raise cls._refused(error) from None
        except SettingsError as error:
            raise ConfigError(
                "A variable of the environment cannot be read",
                why=str(error),
                next_step='write lists as JSON: ["a", "b"]',
            ) from None
        finally:
            _file.reset(token)

    @classmethod
    def variable(cls, name: str) -> str:
        """Of the environment."""
        return f"{cls.model_config.get('env_prefix', '')}{name}".upper()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, dict(_file.get({})))

    @classmethod
    def _refused(cls, error: ValidationError) -> ConfigError:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "extra_forbidden":
            near = get_close_matches(name, cls.model_fields, 1)
            return ConfigError(
                f"There is no setting {name}",
                why=f"the {cls.TABLE} has none of that name",
                next_step=f"did you mean {near[0]}?" if near else "see `hivemint config show` for what there is",
            )
        told = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
        return ConfigError(
            f"The setting {name} cannot be used",
            why=f"{told}, got {str(first['input'])[:80]!r}",
            next_step=f"change --{name.replace('_', '-')}, {cls.variable(name)} or [{cls.TABLE}] of config.toml",
        )


def read_table(home: Home, name: str) -> dict[str, Any]:
    """One table of `config.toml`; empty without a file. Raises ConfigError for a damaged file, and for a table in it
    that nobody would read.
    """
    path = home.root / "config.toml"
    tables = _read(path)
    for table, content in tables.items():
        if table not in TABLES:
            written = f"[{table}]" if isinstance(content, dict) else table
            raise ConfigError(
                f"{path}: nothing reads {written}",
                why=f"settings stand below a line {' or '.join(f'[{one}]' for one in TABLES)}",
                next_step=_mended(table),
            )
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {table} is no table", next_step=f"write settings below a line [{table}]")
    chosen: dict[str, Any] = tables.get(name, {})
    return chosen


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:  # of the second kind are bad TOML and bad UTF-8
        raise ConfigError(f"{path} cannot be read", why=str(error), next_step="mend that line") from None


def _mended(table: str) -> str:
    near = get_close_matches(table, TABLES, 1)
    return f"did you mean [{near[0]}]?" if near else "move its lines below one of these, or remove them"
