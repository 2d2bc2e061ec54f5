"""Secrets of a run, and how they are made."""

import secrets

import msgspec


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Secrets of a run: the engines' bearer token and the CURVE key pair of the control plane."""

    token: str
    public: str
    private: str

    @property
    def keys(self) -> tuple[str, str]:
        return self.public, self.private


def new_token() -> str:
    """Return a new bearer token of 256 bits."""
    return secrets.token_urlsafe(32)
