"""What may be told of a URL: the rest may be an API key, a name and a password."""

from urllib.parse import urlsplit


def shown_url(url: str) -> str:
    """Scheme, host and port: what may be told of a URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "?", parts.port
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}" + (f":{port}" if port else "")
